import argparse
from pathlib import Path

import pytest

from rolemesh.ctl.gateway_address import (
    SYSTEM_SOCKET,
    GatewayAddress,
    add_gateway_options,
    find_gateway,
)
from rolemesh.ctl.outcomes import BadUsage, CtlError, NotReachable


def found(*words: str, **environ: str) -> GatewayAddress:
    parser = argparse.ArgumentParser()
    add_gateway_options(parser)
    environ.setdefault("XDG_CONFIG_HOME", "/nonexistent")
    return find_gateway(parser.parse_args(words), environ)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Return an XDG_CONFIG_HOME with a ctl.yaml."""
    folder = tmp_path / "config"
    (folder / "rolemesh").mkdir(parents=True)
    (folder / "rolemesh" / "ctl.yaml").write_text("url: http://file:1\nkey: from-file\n")
    return folder


def test_options_come_before_the_environment_and_that_before_the_file(home: Path) -> None:
    config = str(home)
    by_option = found("--url", "http://option:1/", ROLEMESH_URL="http://env:1")
    assert by_option == GatewayAddress(url="http://option:1")
    by_variable = found(ROLEMESH_URL="http://env:1", ROLEMESH_KEY="k", XDG_CONFIG_HOME=config)
    assert by_variable == GatewayAddress(url="http://env:1", key="k")
    by_file = found(ROLEMESH_KEY="k", XDG_CONFIG_HOME=config)
    assert by_file == GatewayAddress(url="http://file:1", key="from-file")


def test_without_any_of_them_it_is_a_control_socket_of_this_host() -> None:
    assert found() == GatewayAddress(sockets=(SYSTEM_SOCKET,))
    own = Path("/run/user/7/rolemesh/gateway/control.sock")
    assert found(XDG_RUNTIME_DIR="/run/user/7").sockets == (own, SYSTEM_SOCKET)


def test_a_control_socket_can_be_named_and_gets_no_key() -> None:
    address = found("--url", "unix:/x/control.sock", ROLEMESH_KEY="secret")
    assert address == GatewayAddress(sockets=(Path("/x/control.sock"),))


def test_keys_come_from_files_too(home: Path, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("the-key\n")
    given = found("--url", "http://h:1", "--key-file", str(key), ROLEMESH_KEY="other")
    assert given.key == "the-key"
    ca_file = tmp_path / "ca.pem"
    settings = home / "rolemesh" / "ctl.yaml"
    settings.write_text(f"url: https://h\nkey_file: {key}\nca_file: {ca_file}\n")
    address = found(XDG_CONFIG_HOME=str(home))
    assert address == GatewayAddress(url="https://h", key="the-key", ca_file=ca_file)


def test_a_key_that_others_can_read_is_warned_about(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = home / "rolemesh" / "ctl.yaml"
    settings.chmod(0o640)
    found(XDG_CONFIG_HOME=str(home))
    assert f"run: chmod go-r {settings}" in capsys.readouterr().err
    settings.chmod(0o600)
    found(XDG_CONFIG_HOME=str(home))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("url: 7", "ctl.yaml:1: url: expected one of url, key, key_file, ca_file, each a string"),
        ("uri: http://x", "ctl.yaml:1: uri: expected one of"),
        ("key: k", "url: expected the URL of the gateway, found nothing"),
        ("url: [", "cannot be read"),
    ],
)
def test_a_bad_file_is_refused_by_name(home: Path, text: str, says: str) -> None:
    (home / "rolemesh" / "ctl.yaml").write_text(text)
    with pytest.raises(BadUsage, match=says):
        found(XDG_CONFIG_HOME=str(home))


def test_what_makes_no_sense_is_refused_without_showing_the_key(tmp_path: Path) -> None:
    with pytest.raises(BadUsage, match="is not the URL of a gateway"):
        found("--url", "gateway:8000")
    with pytest.raises(BadUsage) as refused:
        found("--url", "http://h", ROLEMESH_KEY="two words\r\nX-Evil: 1")
    assert "Evil" not in str(refused.value)
    with pytest.raises(NotReachable, match="No such file"):
        found("--url", "http://h", "--key-file", str(tmp_path / "gone"))
    assert issubclass(BadUsage, CtlError)
    assert "secret" not in repr(GatewayAddress(url="http://h", key="secret"))


@pytest.mark.parametrize(
    "url", ["http://[::1", "http://a b/", "http://h/é", "http://h:x", "http://h:99999", "http://"]
)
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(BadUsage, match="is not the URL of a gateway"):
        found("--url", url)


def test_a_file_of_a_user_that_is_not_known_is_refused(home: Path) -> None:
    for key in ("key_file", "ca_file"):
        (home / "rolemesh" / "ctl.yaml").write_text(f"url: http://h\n{key}: ~nobody-here/x\n")
        with pytest.raises(BadUsage, match="~nobody-here/x"):
            found(XDG_CONFIG_HOME=str(home))


def test_a_key_file_without_end_is_refused() -> None:
    with pytest.raises(BadUsage, match="the key is not one line"):
        found("--url", "http://h", "--key-file", "/dev/zero")
