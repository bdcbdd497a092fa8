"""The URL at which a gateway shall reach this node, when the settings do not say it."""

import asyncio
import ipaddress
import socket
from dataclasses import dataclass

from rolemesh.address import UpstreamAddress
from rolemesh.errors import ConnectFailed
from rolemesh.runtime.listeners import is_loopback


@dataclass(frozen=True, slots=True, kw_only=True)
class Listening:
    """What the agent really listens on, and how it is spoken to there: `http` or `https`."""

    hosts: tuple[str, ...]
    port: int
    scheme: str = "http"


async def find_local_address(gateway: UpstreamAddress) -> str:
    """Return the address this host uses toward a gateway; no packet is sent.

    Raises ConnectFailed when the name does not resolve or there is no route.
    """
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(gateway.host, gateway.port, type=socket.SOCK_DGRAM)
        family, kind, protocol, _, address = found[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(address)
            local: str = probe.getsockname()[0]
    except OSError as err:
        msg = f"no way to {gateway}: {err.strerror or err}"
        raise ConnectFailed(msg, upstream=str(gateway)) from err
    return local


def choose_base_url(listening: Listening, local_address: str) -> str:
    """Return the URL to advertise to a gateway that `local_address` faces.

    The facing address if it is listened on, else the first that is, so that an address given in
    `listen.host` is never replaced by one where nobody listens.
    """
    hosts = listening.hosts
    if local_address in hosts or any(map(_is_wildcard, hosts)):
        chosen = local_address
    elif is_loopback(local_address):
        chosen = next((host for host in hosts if is_loopback(host)), hosts[0])
    else:
        chosen = next((host for host in hosts if not is_loopback(host)), hosts[0])
    host = f"[{chosen}]" if ":" in chosen else chosen
    return f"{listening.scheme}://{host}:{listening.port}"


def _is_wildcard(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False
