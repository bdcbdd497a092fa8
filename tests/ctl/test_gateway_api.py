import socket
import ssl
from pathlib import Path

import pytest

from rolemesh.ctl.gateway_address import GatewayAddress
from rolemesh.ctl.gateway_api import ApiError, GatewayApi, _no_socket
from rolemesh.ctl.outcomes import Failed, NotReachable, NotThere
from tests.ctl.conftest import Ctl
from tests.fakes.operator_api import OperatorApi, operator_api
from tests.lab.certificates import Authority
from tests.lab.processes import free_port


def at(*sockets: Path) -> GatewayApi:
    return GatewayApi(GatewayAddress(sockets=sockets))


def test_a_port_is_asked_with_the_key_and_the_prefix_of_the_url() -> None:
    with operator_api() as gateway:
        gateway.replies["GET explain/a%2Fb?key=x+y"] = {"candidates": []}
        address = GatewayAddress(url=gateway.url + "/prefix", key="the-key")
        assert GatewayApi(address).get("explain", "a/b", has="candidates", key="x y") == {
            "candidates": []
        }
        assert gateway.keys == ["Bearer the-key"]


def test_the_first_socket_that_answers_counts(gateway: OperatorApi, short_path: Path) -> None:
    stale = short_path / "stale.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(stale))
    gateway.replies["GET status"] = {"nodes": []}
    control = Path(gateway.url.removeprefix("unix:"))
    assert at(short_path / "none.sock", stale, control).get("status", has="nodes") == {"nodes": []}


def test_without_a_socket_the_message_says_how_to_get_one(short_path: Path) -> None:
    with pytest.raises(NotReachable, match=r"no gateway runs on this host.*systemctl start"):
        at(short_path / "none.sock").get("status", has="nodes")
    stale = short_path / "stale.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(stale))
    with pytest.raises(NotReachable, match=r"no gateway answers at .*stale.sock"):
        at(stale).get("status", has="nodes")


def test_a_socket_that_one_may_not_use_names_the_group() -> None:
    paths = (Path("/run/a.sock"), Path("/run/b.sock"))
    refused = _no_socket(paths, [PermissionError(13, "denied"), FileNotFoundError(2, "none")])
    assert str(refused).startswith("you may not use /run/a.sock: join the group rolemesh (sudo")


def test_nobody_at_the_port_is_not_reachable() -> None:
    address = GatewayAddress(url=f"http://127.0.0.1:{free_port()}")
    with pytest.raises(NotReachable, match="cannot be reached: Connection refused"):
        GatewayApi(address).get("status", has="nodes")


def test_an_https_gateway_is_verified(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate = authority.sign()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.cert_file, certificate.key_file)
    with operator_api(tls=context) as gateway:
        gateway.replies["GET status"] = {"nodes": []}
        trusting = GatewayAddress(url=gateway.url, ca_file=authority.ca_file)
        assert GatewayApi(trusting).get("status", has="nodes") == {"nodes": []}
        with pytest.raises(NotReachable, match=r"name the authority .* with --ca-file"):
            GatewayApi(GatewayAddress(url=gateway.url)).get("status", has="nodes")


def test_a_gateway_that_does_not_answer_is_given_up(short_path: Path) -> None:
    silent = short_path / "silent.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(silent))
        listener.listen()
        address = GatewayAddress(sockets=(silent,))
        with pytest.raises(NotReachable, match="did not answer in time"):
            GatewayApi(address, timeout_s=0.05).get("status", has="nodes")


def test_refusals_say_what_to_do(gateway: OperatorApi) -> None:
    api = at(Path(gateway.url.removeprefix("unix:")))
    gateway.refuse("GET status", 401, "a key is required")
    with pytest.raises(ApiError, match=r"wants a key .*--key-file or ROLEMESH_KEY"):
        api.get("status", has="nodes")
    gateway.refuse("GET status", 403, "no admin key")
    with pytest.raises(ApiError, match="admin: true, or the control socket"):
        api.get("status", has="nodes")
    gateway.refuse("POST reload", 422, "refused here", problems=[])
    with pytest.raises(ApiError, match="refused: refused here") as refusal:
        api.post("reload")
    assert refusal.value.error["problems"] == []
    with pytest.raises(NotThere, match="there is no DELETE requests/x"):
        api.delete("requests", "x")


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"", b'{"error": "text"}'])
def test_something_else_than_a_gateway_is_not_believed(gateway: OperatorApi, body: bytes) -> None:
    gateway.replies["GET status"] = (404, body)
    with pytest.raises(Failed, match="is it a RoleMesh gateway"):
        at(Path(gateway.url.removeprefix("unix:"))).get("status", has="nodes")


def test_an_answer_without_what_was_asked_for_is_a_failure(ask: Ctl, gateway: OperatorApi) -> None:
    gateway.replies["GET aliases"] = {"data": []}
    done = ask("aliases")
    assert (done.status, done.out) == (1, "")
    assert "answers without aliases" in done.err


def test_errors_are_one_line_and_have_their_status(ask: Ctl, ctl: Ctl, short_path: Path) -> None:
    gone = ctl("status", "--url", f"unix:{short_path}/none.sock")
    assert (gone.status, gone.out, gone.err.count("\n")) == (3, "", 1)
    assert gone.err.startswith("rolemeshctl: no gateway runs")
    assert ask("explain", "nobody").status == 4
    bad_ca = ctl("status", "--url", "https://127.0.0.1:1", "--ca-file", short_path / "ca")
    assert bad_ca.status == 3
    assert "holds no certificates that can be used" in bad_ca.err
