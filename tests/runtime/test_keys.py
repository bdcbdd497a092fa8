import pytest

from rolemesh.config.settings import ClientKey, Priority
from rolemesh.errors import NotAuthenticated
from rolemesh.names import Alias
from rolemesh.runtime.keys import ANYONE, KeyRing, Principal, digest_of

ROLES = frozenset({Alias("coder")})
RING = KeyRing(
    (
        ClientKey(name="one", digest=digest_of("key-1")),
        ClientKey(name="two", digest=digest_of("key-2"), roles=ROLES),
        ClientKey(name="umlaut", digest=digest_of("schl\u00fcssel")),
    )
)


def test_a_ring_without_keys_asks_nobody() -> None:
    ring = KeyRing(())
    assert not ring
    assert ring.identify(None, None) is ANYONE
    assert ring.identify("Bearer whatever", "whatever") is ANYONE


@pytest.mark.parametrize(
    ("authorization", "x_api_key", "name"),
    [
        ("Bearer key-1", None, "one"),
        ("bearer  key-1 ", None, "one"),
        (None, "key-2", "two"),
        ("Bearer key-1", "key-2", "one"),
        ("Basic dTpw", "key-2", "two"),
        ("Bearer schl\u00fcssel", None, "umlaut"),
    ],
)
def test_a_key_tells_who_calls(authorization: str | None, x_api_key: str | None, name: str) -> None:
    assert RING
    assert RING.identify(authorization, x_api_key).name == name


def test_a_key_may_be_for_some_roles_only() -> None:
    two = RING.identify("Bearer key-2", None)
    assert two == Principal(name="two", roles=ROLES, digest=digest_of("key-2"))
    assert RING.identify("Bearer key-1", None).roles is None


@pytest.mark.parametrize(
    ("authorization", "x_api_key", "says"),
    [
        (None, None, "a key is required"),
        ("", "", "a key is required"),
        ("Bearer", None, "a key is required"),
        ("Bearer ", None, "a key is required"),
        ("Basic key-1", None, "a key is required"),
        ("key-1", None, "a key is required"),
        ("Bearer key-3", None, "not known"),
        ("Bearer key-3", "key-1", "not known"),
        (None, "KEY-1", "not known"),
        ("Bearer \udcff", None, "not known"),
    ],
)
def test_no_key_and_a_wrong_key_are_told_apart(
    authorization: str | None, x_api_key: str | None, says: str
) -> None:
    with pytest.raises(NotAuthenticated, match=says):
        RING.identify(authorization, x_api_key)


def test_neither_keys_nor_digests_show() -> None:
    key = ClientKey(name="one", digest=digest_of("key-1"))
    assert "key-1" not in repr(key)
    assert digest_of("key-1").hex() not in repr(key)


def test_what_a_key_may_do_is_known_of_who_shows_it() -> None:
    ring = KeyRing(
        [
            ClientKey(
                name="ci",
                digest=digest_of("key"),
                priority=Priority.BATCH,
                max_concurrent=2,
                requests_per_minute=60,
                admin=True,
            )
        ]
    )
    ci = ring.identify("Bearer key", None)
    assert (ci.priority, ci.max_concurrent, ci.requests_per_minute) == (Priority.BATCH, 2, 60)
    assert ci.admin


def test_who_was_identified_before_has_the_rights_of_today() -> None:
    two = RING.identify("Bearer key-2", None)
    assert RING.present(two) == two
    renamed = KeyRing([ClientKey(name="new", digest=digest_of("key-2"))])
    present = renamed.present(two)
    assert present is not None
    assert (present.name, present.roles) == ("new", None)
    assert KeyRing([]).present(two) is None
    assert KeyRing([]).present(ANYONE) is ANYONE
