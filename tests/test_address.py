import ssl

import pytest

from rolemesh.address import UpstreamAddress


@pytest.mark.parametrize(
    ("url", "host", "port", "prefix", "server_name"),
    [
        ("http://h", "h", 80, "", ""),
        ("http://10.0.0.1:8011/v0/", "10.0.0.1", 8011, "/v0", ""),
        ("https://h", "h", 443, "", "h"),
        ("https://H.lan:8443/a/b", "h.lan", 8443, "/a/b", "h.lan"),
        ("http://[::1]:8100", "::1", 8100, "", ""),
        ("https://[fd00::7]", "fd00::7", 443, "", "fd00::7"),
    ],
)
def test_a_base_url_is_read(url: str, host: str, port: int, prefix: str, server_name: str) -> None:
    address = UpstreamAddress.parse_url(url)
    assert (address.host, address.port, address.prefix) == (host, port, prefix)
    assert address.server_name == server_name
    assert str(address) == url.rstrip("/")


@pytest.mark.parametrize(
    "url", ["h:80", "ftp://h", "https://", "http://h?x=1", "https://me:secret@h", "http://h:x"]
)
def test_what_is_no_base_url_is_a_value_error(url: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # urllib has its own texts
        UpstreamAddress.parse_url(url)


def test_connections_are_told_apart_by_place_and_trust() -> None:
    plain, secured = (UpstreamAddress.parse_url(f"{scheme}://h:1") for scheme in ("http", "https"))
    one, other = (ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) for _ in range(2))
    addresses = [plain, secured, secured.verified_by(one), secured.verified_by(other)]
    assert len({address.key for address in addresses}) == 4
    assert secured.verified_by(one).key == secured.verified_by(one).key
    assert secured.verified_by(one).verified_by(one) == secured.verified_by(one)
