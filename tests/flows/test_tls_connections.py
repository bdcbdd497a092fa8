"""The relay over TLS, on both event loops: what clients and upstreams see, and whom they trust."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from rolemesh.address import UpstreamAddress
from rolemesh.config.settings import ClientTls, Limits, ServerTls
from rolemesh.config.tls import client_context, server_context
from rolemesh.errors import ConnectFailed, NotVerified, UpstreamBroke
from rolemesh.relay import connection as connection_module
from rolemesh.relay import inbound as inbound_module
from rolemesh.relay import serving as serving_module
from rolemesh.relay.client import ClientStream, InboundRequest
from rolemesh.relay.fetch import fetch
from rolemesh.relay.upstream import UpstreamPool
from tests.fakes.client import Client, Received, connected, post, request
from tests.fakes.serving import Relay, Served, echo, serving
from tests.fakes.upstream import (
    CHUNKED_STREAM,
    LAST_CHUNK,
    answers,
    chunk,
    every_byte,
    sends,
    sends_and_hangs,
    sends_and_resets,
    upstream,
)
from tests.lab.certificates import Authority, Certificate
from tests.lab.poll import eventually
from tests.lab.processes import free_port

PATH = "/v1/completions"


@pytest.fixture(scope="module")
def certificate(authority: Authority) -> Certificate:
    return authority.sign()


@pytest.fixture(scope="module")
def served_by(certificate: Certificate) -> ssl.SSLContext:
    return accepts(certificate)


@pytest.fixture(scope="module")
def trusting(authority: Authority) -> ssl.SSLContext:
    return client_context(ClientTls(ca_file=authority.ca_file))


def accepts(certificate: Certificate, client_ca_file: Path | None = None) -> ssl.SSLContext:
    return server_context(
        ServerTls(
            cert_file=certificate.cert_file,
            key_file=certificate.key_file,
            client_ca_file=client_ca_file,
        )
    )


def common_name(client: Client) -> str:
    """Return the name in the certificate that a client was shown."""
    shown = client.writer.get_extra_info("peercert")
    return str(dict(pair for (pair,) in shown["subject"])["commonName"])


# --- serving ----------------------------------------------------------------------------------


async def test_requests_of_both_kinds_are_answered_one_after_another(
    served_by: ssl.SSLContext, trusting: ssl.SSLContext
) -> None:
    async with (
        serving(echo, tls=served_by) as served,
        connected(served.port, tls=trusting) as client,
    ):
        chosen = client.writer.get_extra_info("ssl_object").selected_alpn_protocol()
        assert chosen == "http/1.1"
        for body in (b"{}", b"a" * 300_000):
            assert (await client.post(PATH, body)).json["body"] == body.decode()
        await client.send(*every_byte(post(PATH, b"bit by bit")))
        assert (await client.reply()).json["body"] == "bit by bit"
        assert (await client.get("/health")).json == {"status": "ok"}
        assert await client.rest() == b""


async def test_an_ipv6_address_is_served_as_well(
    served_by: ssl.SSLContext, trusting: ssl.SSLContext
) -> None:
    async with (
        serving(echo, tls=served_by, host="::1") as served,
        connected(served.port, host="::1", tls=trusting) as client,
    ):
        assert (await client.post(PATH, b"{}")).status == 200
        address = UpstreamAddress.parse_url(f"https://[::1]:{served.port}").verified_by(trusting)
        assert (await fetch(address, "GET", "/health", timeout_s=5)).status == 200


async def test_what_is_no_request_is_answered_and_closed(
    served_by: ssl.SSLContext, trusting: ssl.SSLContext
) -> None:
    async with (
        serving(echo, tls=served_by, limits=Limits(max_body_bytes=1024)) as served,
        connected(served.port, tls=trusting) as client,
    ):
        await client.send(request("POST", PATH, "Content-Length: 5000") + b"a" * 2000)
        answer = await client.reply()
        assert (answer.status, answer.fields["connection"]) == (413, "close")


Leave = Callable[[Client], Awaitable[None]]


class Hanging:
    """A handler that never answers."""

    cancelled = 0
    started = 0

    async def __call__(self, request: InboundRequest, client: ClientStream) -> None:
        self.started += 1
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled += 1


async def close(client: Client) -> None:
    client.writer.close()  # sends close_notify, and waits for ours


async def abort(client: Client) -> None:
    client.writer.transport.abort()


async def reset(client: Client) -> None:
    client.reset()


@pytest.mark.parametrize("leave", [close, abort, reset])
async def test_a_client_that_leaves_cancels_its_request(
    served_by: ssl.SSLContext, trusting: ssl.SSLContext, leave: Leave
) -> None:
    handler = Hanging()
    async with (
        serving(handler, tls=served_by) as served,
        connected(served.port, tls=trusting) as client,
    ):
        await client.send(post(PATH, b"{}"))
        await eventually(lambda: handler.started, what="it is asked")
        await leave(client)
        await eventually(lambda: handler.cancelled, what="it is cancelled", deadline_s=2)
        await eventually(lambda: not served.inbound.connections, what="it is gone", deadline_s=2)


async def test_an_answer_that_breaks_off_is_no_answer_to_the_client(
    served_by: ssl.SSLContext, trusting: ssl.SSLContext
) -> None:
    script = sends_and_resets(CHUNKED_STREAM + chunk(b"data: 1\n\n"))
    async with (
        upstream(script) as up,
        serving(Relay(upstream=up), tls=served_by) as served,
        connected(served.port, tls=trusting) as client,
    ):
        await client.send(post(PATH, b"{}"))
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await client.reply()


async def test_plain_http_on_a_tls_port_is_closed_and_others_are_served(
    served_by: ssl.SSLContext, trusting: ssl.SSLContext
) -> None:
    async with serving(echo, tls=served_by) as served:
        async with connected(served.port) as plain:
            await plain.send(post(PATH, b"{}"))
            assert b"HTTP" not in await plain.rest()
        async with connected(served.port, tls=trusting) as client:
            assert (await client.post(PATH, b"{}")).status == 200


async def test_tls_on_a_plain_port_is_closed(trusting: ssl.SSLContext) -> None:
    async with serving(echo) as served:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            async with connected(served.port, tls=trusting):
                raise AssertionError


async def test_a_handshake_that_stalls_is_ended(
    served_by: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving_module, "HANDSHAKE_S", 0.1)
    async with serving(echo, tls=served_by) as served, connected(served.port) as client:
        assert await client.rest() == b""


# --- reload -----------------------------------------------------------------------------------


async def test_a_new_certificate_is_shown_to_new_connections_and_old_ones_go_on(
    authority: Authority, served_by: ssl.SSLContext, trusting: ssl.SSLContext
) -> None:
    async with (
        serving(echo, tls=served_by) as served,
        connected(served.port, tls=trusting) as old,
    ):
        await old.post(PATH, b"{}")
        renewed = accepts(authority.sign("renewed"))
        await served.accepting.follow([served.listener], renewed)
        async with connected(served.port, tls=trusting) as new:
            assert (common_name(old), common_name(new)) == ("server", "renewed")
            assert (await new.post(PATH, b"{}")).status == 200
            assert (await old.post(PATH, b"{}")).status == 200


async def test_tls_may_be_switched_on_and_off(
    served_by: ssl.SSLContext, trusting: ssl.SSLContext
) -> None:
    async with serving(echo) as served, connected(served.port) as first:
        for tls in (served_by, None, served_by):
            await served.accepting.follow([served.listener], tls)
            async with connected(served.port, tls=tls and trusting) as client:
                assert (await client.post(PATH, b"{}")).status == 200
        assert (await first.post(PATH, b"{}")).status == 200


async def test_nobody_is_lost_while_certificates_change(
    authority: Authority, trusting: ssl.SSLContext
) -> None:
    contexts = [accepts(authority.sign(f"turn-{turn}")) for turn in range(2)]

    async def ask(served: Served) -> Received:
        async with connected(served.port, tls=trusting) as client:
            return await client.post(PATH, b"{}")

    async with serving(echo, tls=contexts[0]) as served:
        for turn in range(6):
            async with asyncio.TaskGroup() as group:
                asking = [group.create_task(ask(served)) for _ in range(8)]
                await asyncio.sleep(0)
                await served.accepting.follow([served.listener], contexts[turn % 2])
            assert [each.result().status for each in asking] == [200] * 8


@pytest.mark.parametrize("was_asked", [False, True])
async def test_clients_that_lie_idle_do_not_hold_up_a_drain(
    served_by: ssl.SSLContext,
    trusting: ssl.SSLContext,
    was_asked: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection_module, "LINGER_S", 0.1)
    async with serving(echo, tls=served_by) as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port, ssl=trusting)
        client = Client(reader, writer)
        if was_asked:
            await client.post(PATH, b"{}")
        # From here on it does not look at its connection, as pools of clients do not.
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        async with asyncio.timeout(10):
            await served.inbound.drain(30)
        writer.transport.abort()


async def test_a_client_in_its_handshake_when_the_drain_begins_is_still_answered(
    served_by: ssl.SSLContext, trusting: ssl.SSLContext
) -> None:
    async with (
        serving(echo, tls=served_by) as served,
        connected(served.port) as client,
        asyncio.TaskGroup() as group,
    ):
        await eventually(lambda: served.inbound._handshakes, what="it is accepted")
        draining = group.create_task(served.inbound.drain(10))
        await eventually(lambda: served.inbound.draining, what="the drain has begun")
        await client.writer.start_tls(trusting, server_hostname="localhost")
        assert (await client.post(PATH, b"{}")).status == 200
        client.writer.transport.abort()
        await draining


async def test_a_handshake_that_stalls_holds_up_no_drain(
    served_by: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbound_module, "FIRST_REQUEST_S", 0.05)
    async with serving(echo, tls=served_by) as served, connected(served.port):
        await eventually(lambda: served.inbound._handshakes, what="it is accepted")
        async with asyncio.timeout(10):
            await served.inbound.drain(30)


# --- client certificates ----------------------------------------------------------------------


async def test_a_client_certificate_is_asked_for_and_checked(
    authority: Authority, certificate: Certificate, tmp_path: Path
) -> None:
    server = accepts(certificate, authority.ca_file)
    known, stranger = authority.sign("caller"), Authority(tmp_path, "other").sign("stranger")
    async with serving(echo, tls=server) as served:
        for shown, is_let_in in ((known, True), (stranger, False), (None, False)):
            files = {"cert_file": shown.cert_file, "key_file": shown.key_file} if shown else {}
            tls = client_context(ClientTls(ca_file=authority.ca_file, **files))
            address = UpstreamAddress.parse_url(f"https://localhost:{served.port}")
            asked = fetch(address.verified_by(tls), "GET", "/health", timeout_s=5)
            if is_let_in:
                assert (await asked).status == 200
            else:
                with pytest.raises((ConnectFailed, UpstreamBroke), match="client certificate"):
                    await asked


# --- calling upstreams ------------------------------------------------------------------------


@asynccontextmanager
async def relayed(
    certificate: Certificate, tls: ssl.SSLContext, *scripts: object
) -> AsyncIterator[tuple[Served, Relay]]:
    """A plain server in front of an https:// upstream."""
    async with upstream(*scripts, tls=accepts(certificate)) as up:  # type: ignore[arg-type]
        relay = Relay(upstream=up, tls=tls)
        async with serving(relay) as served:
            yield served, relay


async def test_an_https_upstream_is_relayed_and_its_connection_kept(
    certificate: Certificate, trusting: ssl.SSLContext
) -> None:
    stream = sends(CHUNKED_STREAM, chunk(b"data: 1\n\n") * 3, LAST_CHUNK)
    async with relayed(certificate, trusting, answers(b"{}"), stream) as (served, relay):
        async with connected(served.port) as client:
            assert (await client.post(PATH, b"[]")).body == b"{}"
            for _ in range(3):
                assert (await client.post(PATH, b"[]")).body == b"data: 1\n\n" * 3
        assert relay.upstream.accepted == 1
        (first, *_) = relay.upstream.conversations
        assert first.fields["host"] == f"127.0.0.1:{relay.upstream.port}"


async def test_a_client_that_leaves_closes_its_https_upstream(
    certificate: Certificate, trusting: ssl.SSLContext
) -> None:
    script = sends_and_hangs(CHUNKED_STREAM + chunk(b"data: 1\n\n"))
    async with relayed(certificate, trusting, script) as (served, relay):
        async with connected(served.port) as client:
            await client.send(post(PATH, b"{}"))
            await client.reader.readuntil(b"data: 1")
        await eventually(lambda: not relay.upstream.writers, what="it is closed", deadline_s=2)


async def test_the_name_in_the_url_is_verified_whatever_it_was_resolved_to(
    authority: Authority, trusting: ssl.SSLContext
) -> None:
    server = accepts(authority.sign("named", ["DNS:gpubox.lan"]))
    async with upstream(answers(b"{}"), tls=server) as up:
        for name, is_right in (("gpubox.lan", True), ("other.lan", False), ("127.0.0.1", False)):
            address = UpstreamAddress(
                host="127.0.0.1", port=up.port, authority=name, server_name=name, tls=trusting
            )
            if is_right:
                assert (await fetch(address, "POST", "/", body=b"", timeout_s=5)).body == b"{}"
            else:
                with pytest.raises(NotVerified, match=r"not accepted: .*mismatch.*not valid for"):
                    await fetch(address, "POST", "/", body=b"", timeout_s=5)


async def test_a_certificate_that_is_not_accepted_is_called_what_it_is(
    authority: Authority, certificate: Certificate, trusting: ssl.SSLContext, tmp_path: Path
) -> None:
    other = Authority(tmp_path, "other").sign("server")
    nobody_known = client_context(ClientTls())
    for shown, trusted, says in (
        (authority.sign("old", days=-1), trusting, "certificate has expired"),
        (other, trusting, "unable to get local issuer certificate"),
        (certificate, nobody_known, "unable to get local issuer certificate"),
    ):
        async with upstream(answers(b"{}"), tls=accepts(shown)) as up:
            address = UpstreamAddress.parse_url(up.url).verified_by(trusted)
            with pytest.raises(NotVerified, match=f"{up.url}: .*{says}.*tls.ca_file"):
                await fetch(address, "GET", "/", timeout_s=5)


async def test_a_file_of_trust_may_hold_the_servers_own_certificate(
    certificate: Certificate,
) -> None:
    tls = client_context(ClientTls(ca_file=certificate.cert_file))
    async with upstream(answers(b"{}"), tls=accepts(certificate)) as up:
        address = UpstreamAddress.parse_url(up.url).verified_by(tls)
        assert (await fetch(address, "GET", "/", timeout_s=5)).status == 200


async def test_an_upstream_without_tls_is_called_what_it_is(trusting: ssl.SSLContext) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        address = UpstreamAddress.parse_url(f"https://127.0.0.1:{port}").verified_by(trusting)
        with pytest.raises(ConnectFailed, match="does not speak TLS: is the URL's https:// right"):
            await fetch(address, "GET", "/", timeout_s=5)


async def test_nobody_listening_is_said_as_without_tls(trusting: ssl.SSLContext) -> None:
    address = UpstreamAddress.parse_url(f"https://127.0.0.1:{free_port()}").verified_by(trusting)
    with pytest.raises(ConnectFailed, match="Connection refused"):
        await fetch(address, "GET", "/", timeout_s=5)


async def test_connections_are_shared_only_where_the_same_is_trusted(
    authority: Authority, certificate: Certificate, trusting: ssl.SSLContext
) -> None:
    async with upstream(answers(b"{}"), tls=accepts(certificate)) as up:
        pool = UpstreamPool()
        address = UpstreamAddress.parse_url(up.url)
        other = client_context(ClientTls(ca_file=authority.ca_file))
        made = await pool.connect(address.verified_by(trusting), 5)
        pool.give_back(made, pool.clock())
        assert pool.take_idle(address.verified_by(other)) is None
        assert pool.take_idle(address.verified_by(trusting)) is made
        pool.give_back(made, pool.clock())
        pool.give_up(address)
        assert pool.take_idle(address.verified_by(trusting)) is None
