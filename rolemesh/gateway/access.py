"""The gateway's admission rules: for clients, for operators and for nodes."""

from typing import Final

from rolemesh.config.settings import GatewaySettings, Network
from rolemesh.errors import NotAllowed
from rolemesh.names import Alias
from rolemesh.relay.access import Access, Field
from rolemesh.runtime.keys import KeyRing, Principal
from rolemesh.runtime.listeners import is_loopback

OPERATOR_PREFIX: Final = "/v1/rolemesh/"
"""What the paths of operators begin with."""

OPERATOR: Final = Principal(name="operator", admin=True)
"""Whoever can open the control socket."""


class GatewayAccess:
    """Who may call, by the settings in force; `replace` follows a reload.

    Without client keys only this machine is served, whatever addresses are bound: a reload that
    takes the keys away must not open a socket that is still bound to the network.
    """

    def __init__(self, settings: GatewaySettings) -> None:
        self.replace(settings)

    def identify_client(self, peer: str, field: Field) -> Principal:
        """Return whose client key was shown, by the rules in force; raises as Access does."""
        return self.clients.identify(peer, field)

    def identify_operator(self, peer: str, field: Field) -> Principal:
        """Return whose key was shown if it is an operator's; raises as Access does.

        Without client keys whoever calls from this machine is one, and nobody else, whatever
        `auth.open` says.
        """
        principal = self._operators.identify(peer, field)
        if not principal.admin:
            msg = f"the key {principal.name} may not do this: it is no operator's (admin: true)"
            raise NotAllowed(msg)
        return principal

    def identify(self, peer: str, path: str, field: Field) -> Principal:
        """Return who calls a path, by the rule of that path; raises as Access does."""
        if path.startswith(OPERATOR_PREFIX):
            return self.identify_operator(peer, field)
        rule = self.nodes if path.startswith("/v1/nodes/") else self.clients
        return rule.identify(peer, field)

    def still_allows(self, principal: Principal, alias: Alias) -> bool:
        """Tell whether somebody identified before may still use an alias."""
        present = self.clients.present(principal)
        return present is not None and (present.roles is None or alias in present.roles)

    def replace(self, settings: GatewaySettings) -> None:
        """Follow new settings."""
        auth, network = settings.auth, settings.network
        self.clients = Access(
            KeyRing(auth.clients),
            network.allow_clients,
            local_only=not auth.clients and not auth.open,
            origins=settings.cors_origins,
        )
        self._operators = Access(
            KeyRing(auth.clients),
            network.allow_clients,
            local_only=not auth.clients,  # and no page of another origin, whatever cors says
        )
        self.nodes = NodeAccess(
            KeyRing(auth.nodes),
            network.allow_nodes,
            local_only=not auth.nodes and network.allow_nodes is None,
        )


class NodeAccess:
    """Who may register: holders of a node key; without node keys, this machine only."""

    def __init__(
        self, keys: KeyRing, networks: tuple[Network, ...] | None, *, local_only: bool
    ) -> None:
        self._access = Access(keys, networks, local_only=local_only)
        self._keyless = not keys and networks is None

    def identify(self, peer: str, field: Field) -> Principal:
        """Return whose node key was shown; raises NotAuthenticated or NotAllowed."""
        if self._keyless and not is_loopback(peer):
            msg = (
                f"nodes on other machines ({peer}) need a key: set auth.node_api_keys on the "
                "gateway and gateways[].api_key on the node"
            )
            raise NotAllowed(msg)
        return self._access.identify(peer, field)
