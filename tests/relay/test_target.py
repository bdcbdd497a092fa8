import pytest

from rolemesh.errors import BadRequest
from rolemesh.relay.target import Target, read_target


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        (b"/", "/", ""),
        (b"/v1/models", "/v1/models", ""),
        (b"/v1/models?a=/b/&c=//", "/v1/models", "a=/b/&c=//"),
        (b"/v1/models?", "/v1/models", ""),
        # a base URL that ends with a slash, and a path that begins with one
        (b"//chat/completions", "/chat/completions", ""),
        (b"/v1//chat///completions/", "/v1/chat/completions", ""),
        (b"///", "/", ""),
        # percent-encoding that means nothing, and some that does
        (b"/v1/%63hat%2fcompletions", "/v1/chat%2Fcompletions", ""),
        (b"/v1/models/a%20b%C3%A9", "/v1/models/a%20b%C3%A9", ""),
        (b"/100%/%zz/%2", "/100%25/%25zz/%252", ""),
        (b"/a|b?c={d}", "/a%7Cb", "c=%7Bd%7D"),
        # nobody is meant to go upwards here
        (b"/v1/../health", "/v1/../health", ""),
        (b"/v1/%2e%2E/health", "/v1/../health", ""),
    ],
)
def test_a_path_has_one_spelling(target: bytes, path: str, query: str) -> None:
    assert read_target(b"GET", target) == Target(path, query)


@pytest.mark.parametrize(
    ("target", "path", "authority"),
    [
        (b"http://localhost/health", "/health", "localhost"),
        (b"HTTPS://gw.example:8443/v1/models", "/v1/models", "gw.example:8443"),
        (b"http://[::1]:8000//health/", "/health", "[::1]:8000"),
        (b"http://gw.example", "/", "gw.example"),
    ],
)
def test_a_whole_url_names_its_host(target: bytes, path: str, authority: str) -> None:
    assert read_target(b"GET", target) == Target(path, "", authority)


def test_the_server_as_a_whole_can_be_asked_what_it_takes() -> None:
    assert read_target(b"OPTIONS", b"*") == Target("*", "")


@pytest.mark.parametrize(
    "target",
    [
        b"*",
        b"health",
        b"a.example:443",
        b"ftp://a.example/",
        b"http://",
        b"http:///health",
        b"http://a@b/",
        b"http://a b/",
        b"http://[::1/",
        b"http://a:port/",
        b"http://a:999999/",
        b"http://a,b/",
        b"/health#part",
    ],
)
def test_any_other_target_is_refused(target: bytes) -> None:
    with pytest.raises(BadRequest, match="target"):
        read_target(b"GET", target)
