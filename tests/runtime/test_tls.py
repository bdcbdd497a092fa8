"""The TLS contexts in force, and what a reload makes of them."""

from pathlib import Path

import pytest

from rolemesh.address import UpstreamAddress
from rolemesh.config.settings import ClientTls, ServerTls
from rolemesh.errors import ConfigError
from rolemesh.runtime.tls import TlsContexts
from tests.lab.certificates import Authority

NODE = UpstreamAddress.parse_url("https://node.lan:8100")


@pytest.fixture
def server(authority: Authority, tmp_path: Path) -> ServerTls:
    """Return settings whose files may be changed."""
    made = authority.sign()
    files = {name: tmp_path / name for name in ("cert_file", "key_file")}
    for name, file in files.items():
        file.write_bytes(getattr(made, name).read_bytes())
    return ServerTls(**files)


def test_what_did_not_change_stays_and_what_did_is_new(
    server: ServerTls, authority: Authority
) -> None:
    first = TlsContexts().renewed([server, None])
    assert first.renewed([server]).server(server) is first.server(server)
    new = authority.sign("new")
    server.cert_file.write_bytes(new.cert_file.read_bytes())
    server.key_file.write_bytes(new.key_file.read_bytes())
    assert first.renewed([server]).server(server) is not first.server(server)
    assert first.server(None) is None


def test_files_that_cannot_be_used_are_a_configuration_error_and_change_nothing(
    server: ServerTls,
) -> None:
    first = TlsContexts().renewed([server])
    before = first.server(server)
    server.key_file.unlink()
    with pytest.raises(ConfigError, match=r"tls\.key_file: .* cannot be read: No such file"):
        first.renewed([server])
    assert first.server(server) is before


def test_an_address_is_verified_as_its_settings_say_or_by_the_system(authority: Authority) -> None:
    own = ClientTls(ca_file=authority.ca_file)
    contexts = TlsContexts().renewed([own, None])
    by_own, by_system = contexts.secured(NODE, own).tls, contexts.secured(NODE, None).tls
    assert by_own is not None
    assert by_system is not None
    assert by_own is not by_system
    assert contexts.secured(NODE, None).tls is by_system
    assert contexts.secured(contexts.secured(NODE, own), None).tls is by_system
    gone = ClientTls(ca_file=Path("/gone"))
    assert contexts.secured(NODE, gone).tls is by_system


def test_an_address_without_tls_stays_as_it_is(authority: Authority) -> None:
    plain = UpstreamAddress.parse_url("http://node.lan:8100")
    own = ClientTls(ca_file=authority.ca_file)
    assert TlsContexts().renewed([own]).secured(plain, own) is plain
