"""TLS from end to end, as programs: client -> gateway -> agent -> a real llama-server."""

import asyncio
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest

from rolemesh.address import UpstreamAddress
from rolemesh.config.settings import ClientTls
from rolemesh.config.tls import client_context
from rolemesh.errors import UpstreamBroke
from rolemesh.relay.fetch import fetch
from tests.integration.conftest import StartDaemon, model
from tests.lab.certificates import Authority, Certificate
from tests.lab.mesh import Daemon, usable_models
from tests.lab.poll import eventually

SAYS = "Hello from behind two certificates ."
ROUND = [f"w{number}" for number in range(50)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mesh:
    """A gateway and an agent; they speak TLS with each other, and the agent wants to see who calls."""

    gateway: Daemon
    agent: Daemon
    shown: Certificate


@pytest.fixture
async def mesh(
    start_gateway: StartDaemon,
    start_agent: StartDaemon,
    make_model: Callable[..., Path],
    authority: Authority,
    short_path: Path,
) -> Mesh:
    """Start both; the gateway's certificate lies in files that may be replaced."""
    shown = Certificate(cert_file=short_path / "cert.pem", key_file=short_path / "key.pem")
    install(authority.sign("gateway"), shown)
    node, caller = authority.sign("node"), authority.sign("caller")
    trust = {"ca_file": str(authority.ca_file)}
    gateway = await start_gateway(
        {
            "listen": {"host": ["127.0.0.1", "::1"], "tls": shown.settings},
            "nodes": {"tls": {**trust, **caller.settings}},
            "aliases": {"from_roles": True},
        },
        tls=client_context(ClientTls(ca_file=authority.ca_file)),
    )
    tiny = model(make_model("behind", says=SAYS), "behind-gguf", "talker", parallel=2)
    path = make_model("endless", says=" ".join(ROUND), loop=True, context=65536)
    endless = model(path, "endless-gguf", "endless", context_size=65536)
    agent = await start_agent(
        "box",
        {
            "listen": {"tls": {**node.settings, "client_ca_file": trust["ca_file"]}},
            "gateways": [{"url": gateway.url, "tls": trust}],
            "models": [tiny, endless],
            "instances": {"cpu0": {}, "cpu1": {}},
        },
        tls=client_context(
            ClientTls(
                ca_file=authority.ca_file,
                cert_file=caller.cert_file,
                key_file=caller.key_file,
            )
        ),
    )
    await eventually(lambda: usable_models(gateway), what="talker usable", deadline_s=30)
    return Mesh(gateway=gateway, agent=agent, shown=shown)


def install(certificate: Certificate, at: Certificate) -> None:
    at.cert_file.write_bytes(certificate.cert_file.read_bytes())
    at.key_file.write_bytes(certificate.key_file.read_bytes())
    at.key_file.chmod(0o600)


def client_of(mesh: Mesh, url: str) -> openai.AsyncOpenAI:
    assert mesh.gateway.tls is not None
    return openai.AsyncOpenAI(
        base_url=f"{url}/v1",
        api_key="none",
        max_retries=0,
        http_client=openai.DefaultAsyncHttpxClient(verify=mesh.gateway.tls),
    )


CHAT: Any = {"model": "talker", "messages": [{"role": "user", "content": "hello"}]}


async def test_the_openai_client_streams_over_ipv4_and_ipv6(mesh: Mesh) -> None:
    for url in (mesh.gateway.url, mesh.gateway.url.replace("127.0.0.1", "[::1]")):
        async with client_of(mesh, url) as client:
            whole = await client.chat.completions.create(**CHAT)
            assert (whole.choices[0].message.content or "").strip() == SAYS
            stream = await client.chat.completions.create(**CHAT, stream=True)
            words = [chunk.choices[0].delta.content or "" async for chunk in stream]
            assert "".join(words).strip() == SAYS


@pytest.mark.parametrize("body_bytes", [100, 2_000_000])
async def test_curl_is_answered_and_refused_without_the_authority(
    mesh: Mesh, authority: Authority, short_path: Path, body_bytes: int
) -> None:
    curl = shutil.which("curl")
    assert curl is not None
    body = short_path / "body.json"
    padding = "x" * body_bytes
    body.write_text(
        '{"model": "talker", "messages": [{"role": "user", "content": "hello"}],'
        f' "metadata": {{"padding": "{padding}"}}}}'
    )

    async def ask(*options: str) -> tuple[int, str]:
        url = f"{mesh.gateway.url}/v1/chat/completions"
        process = await asyncio.create_subprocess_exec(
            *(curl, "-sS", "--max-time", "60", *options),
            *("-H", "Content-Type: application/json", "--data-binary", f"@{body}", url),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        return process.returncode or 0, output.decode()

    status, output = await ask("--cacert", str(authority.ca_file))
    assert (status, SAYS in output) == (0, True), output
    status, output = await ask()
    assert (status, "certificate" in output) == (60, True), output


async def test_a_stream_goes_on_while_certificates_of_both_are_replaced(
    mesh: Mesh, authority: Authority
) -> None:
    asked: Any = {**CHAT, "model": "endless", "max_tokens": 60_000, "stream": True}
    async with client_of(mesh, mesh.gateway.url) as client:
        words: list[str] = []
        renewed_at = 0
        async with await client.chat.completions.create(**asked) as stream:
            async for chunk in stream:
                words += (chunk.choices[0].delta.content or "").split()
                if len(words) == 1:
                    install(authority.sign("renewed"), mesh.shown)
                    for daemon in (mesh.gateway, mesh.agent):
                        daemon.program.send(signal.SIGHUP)
                if not renewed_at and len(words) % 100 == 0 and await shown_by(mesh, "renewed"):
                    renewed_at = len(words)
                if renewed_at and len(words) > renewed_at + 500:
                    break
        assert words == (ROUND * len(words))[: len(words)]
        whole = await client.chat.completions.create(**CHAT)
        assert (whole.choices[0].message.content or "").strip() == SAYS


async def shown_by(mesh: Mesh, name: str) -> bool:
    """Tell whether the gateway shows a new connection the certificate of this name."""
    port = int(mesh.gateway.url.rpartition(":")[2])
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=mesh.gateway.tls)
    subject = writer.get_extra_info("peercert")["subject"]
    writer.transport.abort()
    return bool(dict(pair for (pair,) in subject)["commonName"] == name)


async def test_nobody_gets_to_the_agent_without_a_certificate(
    mesh: Mesh, authority: Authority
) -> None:
    stranger = client_context(ClientTls(ca_file=authority.ca_file))
    address = UpstreamAddress.parse_url(mesh.agent.url).verified_by(stranger)
    with pytest.raises(UpstreamBroke, match="client certificate"):
        await fetch(address, "GET", "/health", timeout_s=10)
