"""Who may call the agent."""

from dataclasses import replace

import pytest

from rolemesh.agent.access import AgentAccess
from rolemesh.config.settings import ClientKey
from rolemesh.errors import NotAllowed, NotAuthenticated
from rolemesh.names import Alias, ModelId
from rolemesh.runtime.keys import digest_of
from tests.agent.builders import model, node_settings

OPEN = node_settings(model("a", roles=("planner",)))
KEYED = replace(
    OPEN,
    auth=(
        ClientKey(name="ci", digest=digest_of("sesame")),
        ClientKey(name="coder", digest=digest_of("c0de"), roles=frozenset({Alias("coder")})),
    ),
)


def identify(access: AgentAccess, **headers: str) -> str:
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    fields.setdefault("host", "127.0.0.1:8100")
    return access.identify("127.0.0.1", fields.get).name


LOOPBACK = AgentAccess(OPEN, token="t0ken", hosts=("127.0.0.1", "::1"))
NETWORK = AgentAccess(OPEN, token="t0ken", hosts=("127.0.0.1", "10.0.0.7"))
WITH_KEYS = AgentAccess(KEYED, token="t0ken", hosts=("127.0.0.1",))


def test_on_loopback_without_keys_local_callers_are_welcome() -> None:
    assert identify(LOOPBACK) == "-"
    assert identify(LOOPBACK, host="localhost:8100", origin="http://localhost:8100") == "-"
    assert identify(LOOPBACK, authorization="Bearer whatever-clients-send") == "-"


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "rebound.example:8100"},
        {"host": "127.0.0.1:8100", "origin": "https://evil.example"},
        {"host": "10.0.0.7:8100"},
    ],
)
def test_on_loopback_without_keys_foreign_pages_are_refused(headers: dict[str, str]) -> None:
    with pytest.raises(NotAllowed):
        identify(LOOPBACK, **headers)


@pytest.mark.parametrize("access", [NETWORK, WITH_KEYS])
def test_elsewhere_and_with_keys_a_key_is_required(access: AgentAccess) -> None:
    with pytest.raises(NotAuthenticated):
        identify(access)
    with pytest.raises(NotAuthenticated):
        identify(access, authorization="Bearer wrong")


@pytest.mark.parametrize("access", [LOOPBACK, NETWORK, WITH_KEYS])
def test_gateways_show_the_token(access: AgentAccess) -> None:
    assert identify(access, authorization="Bearer t0ken", host="any.name") == "gateway"


def test_only_the_holder_of_the_token_is_a_gateway() -> None:
    gateway = WITH_KEYS.identify("127.0.0.1", {"x-api-key": "t0ken"}.get)
    client = WITH_KEYS.identify("127.0.0.1", {"x-api-key": "sesame"}.get)
    assert WITH_KEYS.is_gateway(gateway)
    assert not WITH_KEYS.is_gateway(client)
    assert not LOOPBACK.is_gateway(LOOPBACK.identify("127.0.0.1", {"host": "localhost"}.get))


def test_own_keys_are_accepted_in_both_headers() -> None:
    assert identify(WITH_KEYS, authorization="Bearer sesame") == "ci"
    assert identify(WITH_KEYS, x_api_key="sesame") == "ci"


def test_a_key_for_other_roles_may_not_use_a_model() -> None:
    fields = {"authorization": "Bearer c0de"}
    principal = WITH_KEYS.identify("127.0.0.1", fields.get)
    with pytest.raises(NotAllowed, match="'coder' may not use 'a'"):
        WITH_KEYS.check_model(principal, ModelId("a"))
    everything = WITH_KEYS.identify("127.0.0.1", {"x-api-key": "sesame"}.get)
    WITH_KEYS.check_model(everything, ModelId("a"))


def test_new_settings_count_at_once() -> None:
    access = AgentAccess(KEYED, token="t0ken", hosts=("127.0.0.1",))
    access.replace(OPEN)
    assert identify(access) == "-"
    access.replace(KEYED)
    with pytest.raises(NotAuthenticated):
        identify(access)


def test_an_agent_that_moves_off_loopback_asks_everybody_for_a_key() -> None:
    access = AgentAccess(OPEN, token="t0ken", hosts=("127.0.0.1",))
    assert identify(access) == "-"
    access.listens_on(("127.0.0.1", "10.0.0.7"))
    access.replace(OPEN)
    with pytest.raises(NotAuthenticated):
        identify(access)
