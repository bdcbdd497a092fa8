"""A gateway in TLS: toward clients, toward nodes and toward static upstreams."""

import json
import ssl
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rolemesh.config.settings import ClientTls, ServerTls
from rolemesh.config.tls import client_context, server_context
from tests.fakes import upstream_kinds as replies
from tests.fakes.client import connected
from tests.fakes.upstream import Upstream, answers, sends_and_hangs
from tests.gateway.conftest import StartGateway, StartUpstream
from tests.gateway.harness import DISCOVERED, Running
from tests.lab.certificates import Authority, Certificate
from tests.lab.poll import eventually

OK = answers(b'{"ok": true}')


@pytest.fixture(scope="module")
def certificate(authority: Authority) -> Certificate:
    return authority.sign()


@pytest.fixture(scope="module")
def trusting(authority: Authority) -> ssl.SSLContext:
    return client_context(ClientTls(ca_file=authority.ca_file))


def accepts(certificate: Certificate, client_ca_file: Path | None = None) -> ssl.SSLContext:
    files = {"cert_file": certificate.cert_file, "key_file": certificate.key_file}
    return server_context(ServerTls(**files, client_ca_file=client_ca_file))


def trust(authority: Authority) -> dict[str, str]:
    return {"ca_file": str(authority.ca_file)}


async def reason(gateway: Running, alias: str) -> str:
    """Return why an alias is unavailable, "" when it is usable."""
    tree = (await gateway.get("/v1/models")).json
    unavailable = {each["id"]: each["reason"] for each in tree["rolemesh"]["unavailable_models"]}
    assert alias in unavailable or alias in {model["id"] for model in tree["data"]}
    return str(unavailable.get(alias, ""))


def subject(peercert: dict[str, Any]) -> str:
    return str(dict(pair for (pair,) in peercert["subject"])["commonName"])


# --- clients ----------------------------------------------------------------------------------


async def test_clients_are_served_https_and_a_reload_shows_them_a_new_certificate(
    start_gateway: StartGateway,
    start_upstream: StartUpstream,
    authority: Authority,
    trusting: ssl.SSLContext,
    tmp_path: Path,
) -> None:
    files = {name: tmp_path / name for name in ("cert_file", "key_file")}

    def install(certificate: Certificate) -> None:
        for name, file in files.items():
            file.write_bytes(getattr(certificate, name).read_bytes())

    install(authority.sign("first"))
    tls = {name: str(file) for name, file in files.items()}
    configuration = {"models": {"coder": DISCOVERED}, "listen": {"tls": tls}}
    plain = await start_gateway(**configuration)
    gateway = replace(plain, tls=trusting)
    await gateway.register("box", await start_upstream(OK))
    assert (await gateway.chat()).json == {"ok": True}
    assert "with TLS" in gateway.lifecycle.status()
    async with connected(gateway.port, tls=trusting) as old:
        install(authority.sign("second"))
        await gateway.reload(configuration)
        shown = set()

        async def is_new() -> bool:
            async with connected(gateway.port, tls=trusting) as client:
                shown.add(subject(client.writer.get_extra_info("peercert")))
                return "second" in shown

        await eventually(is_new, what="the new certificate is shown")
        assert (await old.get("/health")).status == 200
        assert (await gateway.chat()).status == 200


async def test_files_that_do_not_fit_refuse_a_reload_and_the_old_certificate_serves_on(
    start_gateway: StartGateway,
    authority: Authority,
    certificate: Certificate,
    trusting: ssl.SSLContext,
    caplog: pytest.LogCaptureFixture,
) -> None:
    plain = await start_gateway(listen={"tls": certificate.settings})
    gateway = replace(plain, tls=trusting)
    other = authority.sign("other")
    wrong = {**certificate.settings, "key_file": str(other.key_file)}
    gateway.hang_up({"listen": {"tls": wrong}})
    await eventually(lambda: "reload refused" in caplog.text, what="it is said")
    assert f"listen.tls.key_file: {other.key_file} is not the key of the" in caplog.text
    assert (await gateway.get("/health")).status == 200


async def test_tls_comes_and_goes_with_a_reload(
    start_gateway: StartGateway, certificate: Certificate, trusting: ssl.SSLContext
) -> None:
    gateway = await start_gateway()
    secured = replace(gateway, tls=trusting)
    await gateway.reload({"models": {}, "listen": {"tls": certificate.settings}})

    async def serves_tls() -> bool:
        try:
            return (await secured.get("/health")).status == 200
        except (OSError, EOFError):
            return False

    await eventually(serves_tls, what="it serves TLS")
    await gateway.reload({"models": {}})

    async def serves_plain() -> bool:
        try:
            return (await gateway.get("/health")).status == 200
        except (OSError, EOFError):
            return False

    await eventually(serves_plain, what="it serves plain HTTP again")


# --- nodes ------------------------------------------------------------------------------------


async def test_a_node_with_https_is_verified_and_used(
    start_gateway: StartGateway,
    start_upstream: StartUpstream,
    authority: Authority,
    certificate: Certificate,
) -> None:
    up = await start_upstream(OK, tls=accepts(certificate))
    gateway = await start_gateway(nodes={"tls": trust(authority)})
    await gateway.register("box", f"https://localhost:{up.port}")
    assert (await gateway.chat()).json == {"ok": True}
    (asked,) = up.conversations
    assert asked.fields["host"] == f"localhost:{up.port}"


async def test_a_node_whose_certificate_is_not_accepted_is_told_so(
    start_gateway: StartGateway,
    start_upstream: StartUpstream,
    authority: Authority,
    certificate: Certificate,
) -> None:
    named = accepts(authority.sign("named", ["DNS:gpubox.lan"]))
    ups = {
        "not valid for 'localhost'": (await start_upstream(OK, tls=named), trust(authority)),
        "unable to get local issuer": (
            await start_upstream(OK, tls=accepts(certificate)),
            None,
        ),
    }
    gateway = await start_gateway()
    for says, (up, tls) in ups.items():
        await gateway.reload({"models": {"coder": DISCOVERED}, "nodes": {"tls": tls}})
        tree = {
            "node_id": "box",
            "base_url": f"https://localhost:{up.port}",
            "models": [{"model_id": "m", "roles": ["coder"]}],
        }
        refused = await gateway.post("/v1/nodes/register", tree)
        assert refused.status == 403
        assert "its certificate is not accepted: " in refused.error["message"]
        assert says in refused.error["message"]


async def test_a_node_whose_certificate_turns_bad_is_lost_with_the_reason(
    start_gateway: StartGateway,
    start_upstream: StartUpstream,
    authority: Authority,
    certificate: Certificate,
) -> None:
    up = await start_upstream(OK, tls=accepts(certificate))
    gateway = await start_gateway(nodes={"tls": trust(authority)})
    await gateway.register("box", up)
    await gateway.reload({"models": {"coder": DISCOVERED}})
    assert (await gateway.chat()).status >= 500
    await eventually(lambda: gateway.node_state("box") == "lost", what="it is lost")
    assert "box: did not answer: no connection to https://" in await reason(gateway, "coder")
    assert "its certificate is not accepted" in await reason(gateway, "coder")


async def test_a_gateway_shows_its_own_certificate_to_nodes_that_ask(
    start_gateway: StartGateway,
    start_upstream: StartUpstream,
    authority: Authority,
    certificate: Certificate,
) -> None:
    up = await start_upstream(OK, tls=accepts(certificate, authority.ca_file))
    own = authority.sign("gateway")
    gateway = await start_gateway(nodes={"tls": {**trust(authority), **own.settings}})
    await gateway.register("box", up)
    assert (await gateway.chat()).status == 200


# --- static upstreams -------------------------------------------------------------------------


def proxy(up: Upstream, **more: Any) -> dict[str, Any]:
    return {"type": "proxy", "proxy_url": f"{up.url}/prefix", **more}


async def test_an_https_upstream_gets_its_own_key_and_never_the_clients(
    start_gateway: StartGateway,
    start_upstream: StartUpstream,
    authority: Authority,
    certificate: Certificate,
    tmp_path: Path,
) -> None:
    key_file = tmp_path / "key"
    key_file.write_text("sk-theirs\n")
    key_file.chmod(0o600)
    probed = []

    async def probe(conversation: Any) -> None:
        probed.append(conversation)
        await answers(b"{}")(conversation)

    up = await start_upstream(OK, probe=probe, tls=accepts(certificate))
    entry = proxy(up, api_key_file=str(key_file), tls=trust(authority))
    gateway = await start_gateway(
        models={"planner": entry}, auth={"client_api_keys": ["sk-clients"]}
    )
    reply = await gateway.chat("planner", "Authorization: Bearer sk-clients", "X-Api-Key: sk-c")
    assert reply.status == 200
    (asked,) = up.conversations
    assert asked.method_and_path == "POST /prefix/v1/chat/completions"
    assert asked.fields["authorization"] == "Bearer sk-theirs"
    assert probed[0].method_and_path == "GET /prefix/v1/models"
    assert probed[0].fields["authorization"] == "Bearer sk-theirs"
    for each in (asked, *probed):
        assert b"sk-c" not in each.head


async def test_an_upstream_that_is_not_to_be_trusted_is_unavailable_with_the_reason(
    start_gateway: StartGateway, start_upstream: StartUpstream, certificate: Certificate
) -> None:
    up = await start_upstream(OK, tls=accepts(certificate))
    gateway = await start_gateway(models={"planner": proxy(up)})
    assert (await reason(gateway, "planner")).startswith(
        f"no connection to {up.url}/prefix: its certificate is not accepted: unable to get local"
    )


async def test_a_new_authority_in_the_same_file_counts_from_the_next_reload(
    start_gateway: StartGateway,
    start_upstream: StartUpstream,
    authority: Authority,
    certificate: Certificate,
    tmp_path: Path,
) -> None:
    ca_file = tmp_path / "ca.pem"
    ca_file.write_bytes(Authority(tmp_path, "other").ca_file.read_bytes())
    up = await start_upstream(OK, tls=accepts(certificate))
    models = {"planner": proxy(up, tls={"ca_file": str(ca_file)})}
    gateway = await start_gateway(models=models)
    assert "not accepted" in await reason(gateway, "planner")
    ca_file.write_bytes(authority.ca_file.read_bytes())
    await gateway.reload({"models": models})

    async def is_usable() -> bool:
        return not await reason(gateway, "planner")

    await eventually(is_usable, what="planner is usable")
    assert (await gateway.chat("planner")).status == 200


async def test_aliases_of_one_url_share_its_bound_and_each_has_its_own_model_looked_at(
    start_gateway: StartGateway, start_upstream: StartUpstream
) -> None:
    up = await start_upstream(sends_and_hangs(), probe=answers(replies.OLLAMA))
    bounded = proxy(up, max_in_flight=1)
    gateway = await start_gateway(
        models={
            "planner": {**bounded, "openai_model_name": "llama3"},
            "coder": {**bounded, "defaults": {"model": "qwen2.5-coder:7b"}},
            "critic": {**bounded, "openai_model_name": "mistral"},
        }
    )
    assert await reason(gateway, "planner") == await reason(gateway, "coder") == ""
    assert await reason(gateway, "critic") == (
        f"{up.url}/prefix has no model mistral "
        "(it has llama3:latest, qwen2.5-coder:7b, someone/tuned:latest)"
    )
    async with connected(gateway.port) as first, connected(gateway.port) as second:
        for client, alias in ((first, "planner"), (second, "coder")):
            body = json.dumps({"model": alias}).encode()
            await client.send(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
                b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
            )
            await eventually(
                lambda: up.conversations or gateway.queued("coder"), what="it has arrived"
            )
        await eventually(lambda: gateway.queued("coder") == 1, what="the second waits")
        assert [each.json["model"] for each in up.conversations] == ["llama3"]
