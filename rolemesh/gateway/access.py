"""The gateway's two admission rules: for clients and for nodes."""

from rolemesh.config.settings import GatewaySettings, Network
from rolemesh.errors import NotAllowed
from rolemesh.relay.access import Access, Field
from rolemesh.runtime.keys import KeyRing, Principal
from rolemesh.runtime.listeners import is_loopback


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

    def replace(self, settings: GatewaySettings) -> None:
        """Follow new settings."""
        auth, network = settings.auth, settings.network
        self.clients = Access(
            KeyRing(auth.clients),
            network.allow_clients,
            local_only=not auth.clients and not auth.open,
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
