import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from rolemesh.config.settings import ClientTls, GatewayLink
from rolemesh.ctl.join_gateway import JoinGateway
from rolemesh.ctl.outcomes import CtlError, Failed, NotReachable
from tests.fakes.operator_api import OperatorApi, operator_api
from tests.lab.certificates import Authority
from tests.lab.processes import free_port

IS_GATEWAY = {"info": {"title": "RoleMesh gateway"}}


@pytest.fixture
def api() -> Iterator[OperatorApi]:
    with operator_api() as api:
        api.replies["GET /openapi.json"] = IS_GATEWAY
        yield api


def why_not(gateway: JoinGateway, kind: type[CtlError]) -> str:
    with pytest.raises(kind) as refused:
        gateway.require_gateway()
    return str(refused.value)


def test_a_gateway_is_known_by_what_it_says_of_itself(api: OperatorApi) -> None:
    JoinGateway(api.url, "secret", None).require_gateway()
    assert api.keys == ["Bearer secret"]


def test_an_agent_and_another_server_are_told_apart(api: OperatorApi) -> None:
    api.replies = {"GET /health": {"status": "ok", "version": "1"}}
    assert "is a node's agent" in why_not(JoinGateway(api.url, "k", None), Failed)
    api.replies = {"GET /health": {"status": "ok"}, "GET /openapi.json": b"<html>"}
    assert "is no RoleMesh gateway" in why_not(JoinGateway(api.url, "k", None), Failed)


def test_what_it_knows_of_a_node_is_returned(api: OperatorApi) -> None:
    gateway = JoinGateway(api.url, "k", None)
    assert gateway.node("box") is None
    api.replies["GET /v1/nodes/box"] = {"node_id": "box"}
    assert gateway.node("box") == {"node_id": "box"}


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (401, r"does not take this token \(no\).*gateway invite"),
        (403, "refuses this host: no"),
        (500, "refuses this host: no"),
    ],
)
def test_a_key_that_is_not_taken_is_told_with_what_helps(
    api: OperatorApi, status: int, says: str
) -> None:
    api.refuse("GET /v1/nodes/box", status, "no")
    with pytest.raises(Failed, match=says):
        JoinGateway(api.url, "k", None).node("box")


def test_nobody_there(api: OperatorApi) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    said = why_not(JoinGateway(url, "k", None), NotReachable)
    assert said.startswith(f"nobody listens at {url}. A gateway listens on its own host only")
    said = why_not(JoinGateway("http://no-such-host.invalid", "k", None), NotReachable)
    assert said.startswith("the name no-such-host.invalid is not known here")


def test_somebody_who_does_not_speak_http(api: OperatorApi) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        gateway = JoinGateway(url, "k", None, timeout_s=0.05)
        assert "did not answer within" in why_not(gateway, NotReachable)


def test_tls_is_verified_by_an_authority_of_ones_own(authority: Authority, tmp_path: Path) -> None:
    server = authority.sign()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server.cert_file, server.key_file)
    with operator_api(tls=context) as api:
        api.replies["GET /openapi.json"] = IS_GATEWAY
        link = GatewayLink(url=api.url, api_key="k", tls=ClientTls(ca_file=authority.ca_file))
        JoinGateway.of(link).require_gateway()
        said = why_not(JoinGateway(api.url, "k", None), NotReachable)
        assert f"the certificate of {api.url} is not accepted" in said
        assert "--ca-file" in said
        plain = api.url.replace("https", "http")
        said = why_not(JoinGateway(plain, "k", None), NotReachable)
        assert said.endswith(f"if it speaks TLS: {api.url}")
    with pytest.raises(Failed, match="holds no certificates"):
        JoinGateway(api.url, "k", tmp_path)


def test_tls_where_there_is_none(api: OperatorApi) -> None:
    url = api.url.replace("http", "https")
    said = why_not(JoinGateway(url, "k", None), NotReachable)
    assert said.endswith(f"try {api.url}")


def test_a_node_without_a_key_is_told_to_join(api: OperatorApi) -> None:
    api.refuse("GET /v1/nodes/box", 401, "a key is required")
    with pytest.raises(Failed, match="this node has no key there: `sudo rolemeshctl node join"):
        JoinGateway(api.url, None, None).node("box")
