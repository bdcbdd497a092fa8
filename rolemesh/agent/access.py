"""Who may call this agent: holders of a key of its own, or of the token it gives to gateways.

An agent that listens on loopback only and has no keys of its own is open to local callers.
"""

from collections.abc import Iterable

from rolemesh.config.settings import ClientKey, NodeSettings
from rolemesh.errors import NotAllowed, NotAuthenticated
from rolemesh.names import ModelId
from rolemesh.relay.access import Access, Field
from rolemesh.runtime.keys import KeyRing, Principal, digest_of
from rolemesh.runtime.listeners import is_loopback

GATEWAY_NAME = "gateway"
"""The name in logs of whoever presents the agent's token."""


class AgentAccess:
    """The admission rule of every path but /health and /ready; `replace` follows a reload."""

    def __init__(self, settings: NodeSettings, *, token: str, hosts: Iterable[str]) -> None:
        """`hosts` are the addresses really listened on."""
        self._token_key = ClientKey(name=GATEWAY_NAME, digest=digest_of(token))
        self.listens_on(hosts)
        self._locals = Access(KeyRing(()), None, local_only=True)
        self.replace(settings)

    def listens_on(self, hosts: Iterable[str]) -> None:
        """Follow other addresses listened on; `replace` must follow."""
        self._is_loopback = all(map(is_loopback, hosts))

    def replace(self, settings: NodeSettings) -> None:
        """Follow new settings."""
        self._key_holders = Access(
            KeyRing((*settings.auth, self._token_key)), None, local_only=False
        )
        self._is_open = self._is_loopback and not settings.auth
        self._models = settings.models

    def identify(self, peer: str, field: Field) -> Principal:
        """Return who calls; raises NotAuthenticated or NotAllowed."""
        try:
            return self._key_holders.identify(peer, field)
        except NotAuthenticated:
            if not self._is_open:
                raise
        return self._locals.identify(peer, field)

    def is_gateway(self, principal: Principal) -> bool:
        """Tell whether a caller is a gateway: it has limits of its own for what it asks."""
        return principal.name == GATEWAY_NAME

    def check_model(self, principal: Principal, model_id: ModelId) -> None:
        """Check that a key restricted to roles may use the model; raises NotAllowed."""
        model = self._models.get(model_id)
        if principal.roles is None or model is None:
            return
        if principal.roles.isdisjoint(map(str, model.roles)):
            msg = f"the key '{principal.name}' may not use '{model_id}'"
            raise NotAllowed(msg)
