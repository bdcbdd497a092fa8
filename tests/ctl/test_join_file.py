import dataclasses
from pathlib import Path

import pytest

from rolemesh.config.dropins import ConfigSource
from rolemesh.config.load import load_node
from rolemesh.config.settings import GatewayLink
from rolemesh.ctl import join_file
from rolemesh.ctl.join_file import Join
from rolemesh.ctl.outcomes import Failed

GATEWAY = "http://10.0.0.1:8000"


@pytest.fixture
def join(tmp_path: Path) -> Join:
    key = tmp_path / "node.key"
    key.write_text("secret\n")
    key.chmod(0o600)
    return Join(gateway=GATEWAY, key_file=key, advertise_url="http://10.0.0.7:8100")


def test_what_is_written_is_what_the_agent_reads(join: Join, tmp_path: Path) -> None:
    folder = tmp_path / "node.d"
    folder.mkdir()
    full = dataclasses.replace(join, node_id="0815", hosts=("10.0.0.7", "::1"), port=8101)
    (folder / join_file.NAME).write_text(join_file.render(full))
    settings = load_node(ConfigSource(program="node", config_dir=folder), {}).settings
    assert (settings.node_id, settings.advertise_url) == ("0815", "http://10.0.0.7:8100")
    assert (settings.listen.host, settings.listen.port) == (("10.0.0.7", "::1"), 8101)
    assert settings.gateways == (GatewayLink(url=GATEWAY, api_key="secret"),)
    assert "secret" not in join_file.render(full)


def test_only_what_nobody_else_says_is_said(join: Join) -> None:
    assert join_file.render(join).splitlines()[1:] == [
        'advertise_url: "http://10.0.0.7:8100"',
        "gateways:",
        f'  "{GATEWAY}":',
        f'    api_key_file: "{join.key_file}"',
    ]


def test_an_authority_of_ones_own_is_named(join: Join) -> None:
    text = join_file.render(dataclasses.replace(join, ca_file=Path("/etc/ca.pem")))
    assert text.splitlines()[-1] == '    tls: {ca_file: "/etc/ca.pem"}'


def test_the_file_of_the_same_gateway_is_replaced(join: Join, tmp_path: Path) -> None:
    file = tmp_path / join_file.NAME
    assert join_file.require_replaceable(file, GATEWAY, force=False) is None
    file.write_text(join_file.render(join))
    assert join_file.require_replaceable(file, GATEWAY, force=False) == join_file.render(join)


@pytest.mark.parametrize("text", ["# mine\n", "gateways: [", ""])
def test_what_somebody_else_wrote_is_replaced_by_force_only(text: str, tmp_path: Path) -> None:
    file = tmp_path / join_file.NAME
    file.write_text(text)
    with pytest.raises(Failed, match="was not written by `node join`"):
        join_file.require_replaceable(file, GATEWAY, force=False)
    assert join_file.require_replaceable(file, GATEWAY, force=True) == text


@pytest.mark.parametrize(
    "more", ["policy: {wedge_after_s: 120}   # mine\n", "# mine\n", "gateways: [\n"]
)
def test_a_file_that_somebody_edited_is_replaced_by_force_only(
    join: Join, tmp_path: Path, more: str
) -> None:
    file = tmp_path / join_file.NAME
    file.write_text(join_file.render(join) + more)
    with pytest.raises(Failed, match="was not written by `node join`, or was edited"):
        join_file.require_replaceable(file, GATEWAY, force=False)
    assert join_file.require_replaceable(file, GATEWAY, force=True)


def test_what_it_wrote_is_known_again_whatever_it_says(join: Join, tmp_path: Path) -> None:
    file = tmp_path / join_file.NAME
    for more in (
        {"node_id": "0815", "hosts": ("10.0.0.7", "::1"), "port": 8101},
        {"ca_file": Path("/etc/é.pem"), "hosts": ("10.0.0.7",)},
        {"port": 8101},
    ):
        text = join_file.render(dataclasses.replace(join, **more))
        file.write_text(text)
        assert join_file.require_replaceable(file, GATEWAY, force=False) == text
        assert join_file.require_own_key(join.key_file, text, force=False) == "secret\n"


def test_another_gateway_takes_force(join: Join, tmp_path: Path) -> None:
    file = tmp_path / join_file.NAME
    file.write_text(join_file.render(join))
    with pytest.raises(Failed, match=f"this host has joined {GATEWAY}"):
        join_file.require_replaceable(file, "http://10.0.0.2:8000", force=False)
    assert join_file.require_replaceable(file, "http://10.0.0.2:8000", force=True)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / join_file.NAME).mkdir()
    with pytest.raises(Failed, match=r"50-join\.yaml cannot be read"):
        join_file.require_replaceable(tmp_path / join_file.NAME, GATEWAY, force=True)
