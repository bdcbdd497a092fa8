import ipaddress

import pytest

from rolemesh.ctl.local_address import (
    address_toward,
    in_url,
    is_local_only,
    is_wildcard,
    outward_addresses,
)


def test_the_address_toward_this_host_is_its_own() -> None:
    assert address_toward("127.0.0.1", 9) == "127.0.0.1"
    with pytest.raises(OSError, match=r"Name or service not known|No address|name resolution"):
        address_toward("no-such-host.invalid", 9)


def test_addresses_for_others_are_those_that_others_can_use() -> None:
    found = outward_addresses()
    assert len(set(found)) == len(found)
    for each in found:
        address = ipaddress.ip_address(each)
        assert not any((address.is_loopback, address.is_unspecified, address.is_link_local))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1", "localhost"])
def test_what_no_other_host_reaches(host: str) -> None:
    assert is_local_only(host)
    assert not is_wildcard(host)


@pytest.mark.parametrize("host", ["10.0.0.1", "2001:db8::1", "gpubox", "0.0.0.0", "::"])
def test_what_others_reach(host: str) -> None:
    assert not is_local_only(host)
    assert is_wildcard(host) == (host in {"0.0.0.0", "::"})


def test_an_address_in_a_url() -> None:
    assert (in_url("10.0.0.1"), in_url("::1"), in_url("gpubox")) == ("10.0.0.1", "[::1]", "gpubox")
