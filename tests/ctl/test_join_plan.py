import argparse
import json
import socket
from pathlib import Path

import pytest

from rolemesh.address import UpstreamAddress
from rolemesh.config.dropins import ConfigSource
from rolemesh.config.load import Loaded, load_node
from rolemesh.config.settings import NodeSettings
from rolemesh.ctl.agent_place import AgentPlace
from rolemesh.ctl.join_file import Join
from rolemesh.ctl.join_plan import (
    checked_gateway,
    plan_join,
    require_free_port,
    require_in_force,
)
from rolemesh.ctl.outcomes import BadUsage, CtlError, Failed, NotReachable

HERE = "http://127.0.0.1:8000"


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    for name in ("node.d", "node-left.d", "node-right.d"):
        (tmp_path / name).mkdir()
    return tmp_path


def base(directory: Path, text: str) -> Loaded[NodeSettings]:
    (directory / "10-a.yaml").write_text(text)
    return load_node(ConfigSource(program="node", config_dir=directory), {})


def plan(etc: Path, text: str = "", *, agent: str = "", url: str = HERE, **given: str) -> Join:
    directory = etc / (f"node-{agent}.d" if agent else "node.d")
    place = AgentPlace(name=agent, directory=directory, sockets=())
    options = {"gateway": url, "listen": None, "advertise_url": None, "ca_file": None, "name": None}
    args = argparse.Namespace(**{**options, **given})
    return plan_join(args, place, UpstreamAddress.parse_url(url), base(directory, text))


def test_the_agent_listens_on_the_address_used_toward_the_gateway(etc: Path) -> None:
    join = plan(etc, "listen: {host: 10.9.9.9, port: 8107}\n")
    assert join.hosts == ("10.9.9.9", "127.0.0.1")
    assert join.port is None
    assert join.advertise_url == "http://127.0.0.1:8107"
    assert join.key_file == etc / "node.key"
    assert join.node_id is None


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "'::'"])
def test_an_agent_that_listens_there_already_is_left_as_it_is(etc: Path, host: str) -> None:
    join = plan(etc, f"listen: {{host: {host}}}\n")
    assert (join.hosts, join.port, join.advertise_url) == (None, None, "http://127.0.0.1:8100")


def test_an_address_that_is_named_counts(etc: Path) -> None:
    join = plan(etc, listen="[::1]:8105")
    assert (join.hosts, join.port, join.advertise_url) == (("::1",), 8105, "http://[::1]:8105")
    join = plan(etc, listen="0.0.0.0:8105")
    assert (join.hosts, join.advertise_url) == (("0.0.0.0",), "http://127.0.0.1:8105")
    join = plan(etc, listen="0.0.0.0:8105", advertise_url="https://box.lan/agent")
    assert join.advertise_url == "https://box.lan/agent"


@pytest.mark.parametrize("text", ["8100", "host", ":8100", "host:0", "host:high", "http://h:1"])
def test_what_is_no_address_to_listen_on_is_a_mistake(etc: Path, text: str) -> None:
    with pytest.raises(BadUsage, match="expected HOST:PORT"):
        plan(etc, listen=text)


def test_a_wildcard_is_no_address_for_others(etc: Path) -> None:
    with pytest.raises(BadUsage, match="no address that others could connect to"):
        plan(etc, advertise_url="http://0.0.0.0:8100")


def test_an_agent_with_a_certificate_is_spoken_to_by_it(etc: Path) -> None:
    directory = etc / "node.d"
    source = base(directory, "node_id: box\n")
    text = "listen: {host: 127.0.0.1, tls: {cert_file: /c.pem, key_file: /k.pem}}\n"
    (directory / "10-a.yaml").write_text(text)
    secured = load_node(ConfigSource(program="node", config_dir=directory), {}, reads_keys=False)
    assert source.settings.listen.tls is None
    place = AgentPlace(directory=directory, sockets=())
    args = argparse.Namespace(
        gateway=HERE, listen=None, advertise_url=None, ca_file=Path("ca.pem"), name="box"
    )
    join = plan_join(args, place, UpstreamAddress.parse_url(HERE), secured)
    assert join.advertise_url == "https://127.0.0.1:8100"
    assert join.ca_file == Path.cwd() / "ca.pem"
    assert join.node_id == "box"


def test_a_second_agent_has_a_name_and_a_port_of_its_own(etc: Path) -> None:
    (etc / "node.d" / "10-a.yaml").write_text("listen: {port: 8100}\n")
    (etc / "node-right.d" / "10-a.yaml").write_text("listen: {port: 8101}\n")
    join = plan(etc, "", agent="left")
    assert join.port == 8102
    assert join.advertise_url == "http://127.0.0.1:8102"
    assert join.key_file == etc / "node-left.key"
    assert join.node_id is not None
    assert join.node_id.endswith("-left")
    said = plan(etc, "node_id: two\nlisten: {port: 9000}\n", agent="left")
    assert (said.port, said.node_id) == (None, None)


def test_a_name_that_is_none_is_a_mistake(etc: Path) -> None:
    with pytest.raises(BadUsage, match="is not a name"):
        plan(etc, name="a b")


def test_a_gateway_out_of_reach_is_told(etc: Path) -> None:
    with pytest.raises(NotReachable, match=r"no-such-host\.invalid is not known here"):
        plan(etc, url="http://no-such-host.invalid:8000")


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ("http://gw:8000/", "http://gw:8000"),
        ("http://gw:8000/v1", "http://gw:8000"),
        ("https://llm.example/team", "https://llm.example/team"),
    ],
)
def test_a_gateway_is_written_in_one_form(given: str, written: str) -> None:
    assert checked_gateway(given) == written


@pytest.mark.parametrize("url", ["gw:8000", "ftp://gw", "http://me@gw", "http://0.0.0.0:8000"])
def test_what_is_no_url_of_a_gateway_is_a_mistake(url: str) -> None:
    with pytest.raises(BadUsage, match=r"^URL: "):
        checked_gateway(url)


def test_what_a_later_file_says_otherwise_is_found(etc: Path) -> None:
    join = plan(etc, name="box", listen="127.0.0.1:8105")
    settings = base(etc / "node.d", "node_id: other\nlisten: {port: 1}\n").settings
    with pytest.raises(Failed, match=r"sets node_id and listen.port and advertise_url otherwise"):
        require_in_force(join, settings)


def settings_at(etc: Path, listen: str) -> NodeSettings:
    return base(etc / "node.d", f"listen: {listen}\n").settings


def test_a_port_that_is_taken_is_found(etc: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(CtlError, match=f"127.0.0.1:{port}: another program listens there"):
            require_free_port(settings_at(etc, f"{{host: 127.0.0.1, port: {port}}}"))
    require_free_port(settings_at(etc, f"{{host: 127.0.0.1, port: {port}}}"))
    with pytest.raises(CtlError, match=r"cannot listen on 192\.0\.2\.1:8100"):
        require_free_port(settings_at(etc, "{host: 192.0.2.1}"))


@pytest.mark.parametrize(
    ("held", "wanted"),
    [
        ('["127.0.0.1"]', '["0.0.0.0"]'),
        ('["127.0.0.1"]', '["127.0.0.1", "127.0.0.2"]'),
        ('["0.0.0.0"]', '["127.0.0.2"]'),
    ],
)
def test_a_port_that_the_agent_itself_has_is_free_for_it(etc: Path, held: str, wanted: str) -> None:
    host = json.loads(held)[0]
    with socket.create_server((host, 0)) as server:
        port = server.getsockname()[1]
        own = settings_at(etc, f"{{host: {held}, port: {port}}}").listen
        settings = settings_at(etc, f"{{host: {wanted}, port: {port}}}")
        require_free_port(settings, held=own)
        with pytest.raises(CtlError, match="another program listens there"):
            require_free_port(settings)
