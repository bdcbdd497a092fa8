import pytest

from rolemesh.relay.cors import cors_fields, is_allowed, preflight_fields

PAGE = "https://chat.example"
ALLOWED = (PAGE, "http://localhost:3000")
ANY = ("*",)


@pytest.mark.parametrize("origin", [None, "", PAGE, "null"])
def test_it_is_off_by_default(origin: str | None) -> None:
    assert cors_fields(origin, ()) == ()
    assert preflight_fields(origin, (), methods="POST", headers=None) == ()
    assert not is_allowed(origin or "", ())


def test_a_page_that_may_read_is_named_in_the_reply() -> None:
    fields = dict(cors_fields(PAGE, ALLOWED))
    assert fields["Access-Control-Allow-Origin"] == PAGE
    assert "X-Request-Id" in fields["Access-Control-Expose-Headers"]
    assert fields["Vary"] == "Origin"
    assert len(fields) == 3


@pytest.mark.parametrize(
    "origin", [None, "", "null", "https://evil.example", f"{PAGE}.evil.example", PAGE.upper()]
)
def test_any_other_page_is_told_nothing(origin: str | None) -> None:
    assert cors_fields(origin, ALLOWED) == (("Vary", "Origin"),)
    assert preflight_fields(origin, ALLOWED, methods="POST", headers="a") == ()


@pytest.mark.parametrize("origin", ["null", PAGE, "https://evil.example\r\nX: y"])
def test_a_star_is_for_every_page_and_repeats_nothing(origin: str) -> None:
    fields = dict(cors_fields(origin, ANY))
    assert fields["Access-Control-Allow-Origin"] == "*"
    assert "Vary" not in fields
    assert cors_fields(None, ANY) == ()


def test_no_reply_allows_credentials() -> None:
    for allowed in (ALLOWED, ANY):
        preflight = preflight_fields(PAGE, allowed, methods="GET", headers=None)
        names = {name.lower() for name, _ in (*cors_fields(PAGE, allowed), *preflight)}
        assert "access-control-allow-credentials" not in names


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("authorization,content-type,x-stainless-os", "authorization,content-type,x-stainless-os"),
        ("authorization", "authorization"),
        (None, "Authorization, Content-Type, X-Api-Key, X-Request-Id"),
        ("a\r\nX: y", "Authorization, Content-Type, X-Api-Key, X-Request-Id"),
        ("a" * 65, "Authorization, Content-Type, X-Api-Key, X-Request-Id"),
    ],
)
def test_a_preflight_allows_the_headers_that_the_page_wants_to_send(
    asked: str | None, told: str
) -> None:
    fields = dict(preflight_fields(PAGE, ALLOWED, methods="OPTIONS, POST", headers=asked))
    assert fields["Access-Control-Allow-Headers"] == told
    assert fields["Access-Control-Allow-Methods"] == "OPTIONS, POST"
