"""Where the gateway is, and what it is shown.

In this order, the first that says anything counts:

1. `--url` (with `--key-file`, `--ca-file`); `unix:/PATH` names a control socket
2. `$ROLEMESH_URL`
3. `~/.config/rolemesh/ctl.yaml`: `url`, `key` or `key_file`, `ca_file`
4. a control socket: $XDG_RUNTIME_DIR/rolemesh/gateway/control.sock, of a gateway that the user
   runs, then /run/rolemesh/gateway/control.sock

`$ROLEMESH_KEY` is the key for 1 without `--key-file`, and for 2.
"""

import argparse
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from rolemesh.address import UpstreamAddress
from rolemesh.ctl import output
from rolemesh.ctl.outcomes import BadUsage, NotReachable

URL_VARIABLE: Final = "ROLEMESH_URL"
KEY_VARIABLE: Final = "ROLEMESH_KEY"
SYSTEM_SOCKET: Final = Path("/run/rolemesh/gateway/control.sock")
SOCKET_PREFIX: Final = "unix:"

_LONGEST_KEY: Final = 16 * 1024
_OTHERS_READ: Final = stat.S_IRGRP | stat.S_IROTH
_FILE_KEYS: Final = ("url", "key", "key_file", "ca_file")


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayAddress:
    """A gateway at `url`, or at the first of `sockets` that answers."""

    url: str = ""
    sockets: tuple[Path, ...] = ()
    key: str | None = field(default=None, repr=False)
    ca_file: Path | None = None

    def __str__(self) -> str:
        return self.url or " or ".join(map(str, self.sockets))


def add_gateway_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of every verb that speaks to the gateway."""
    found = parser.add_argument_group("where the gateway is")
    found.add_argument(
        "--url",
        metavar="URL",
        help=f"the gateway, or unix:/PATH of its control socket (default: ${URL_VARIABLE}, "
        "~/.config/rolemesh/ctl.yaml, this host's control socket)",
    )
    found.add_argument(
        "--key-file", metavar="FILE", type=Path, help=f"a key with admin: true (or ${KEY_VARIABLE})"
    )
    found.add_argument(
        "--ca-file", metavar="FILE", type=Path, help="who signed an https gateway's certificate"
    )
    add_json_option(parser)


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """Add --json."""
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def find_gateway(
    args: argparse.Namespace, environ: Mapping[str, str] = os.environ
) -> GatewayAddress:
    """Return where the gateway is; raises BadUsage for what makes no sense."""
    key = environ.get(KEY_VARIABLE) or None
    if args.key_file is not None:
        key = _key_in(args.key_file)
    url: str = args.url or environ.get(URL_VARIABLE, "")
    if url:
        return _address(url, key, args.ca_file)
    file = _settings_file(environ)
    if file.exists():
        return _address_in(file, args)
    return GatewayAddress(sockets=control_sockets(environ))


def control_sockets(environ: Mapping[str, str] = os.environ) -> tuple[Path, ...]:
    """Return where this host's gateways listen for operators: the user's, the system's."""
    runtime = environ.get("XDG_RUNTIME_DIR", "")
    own = (Path(runtime, "rolemesh", "gateway", "control.sock"),) if runtime else ()
    return (*own, SYSTEM_SOCKET)


def _settings_file(environ: Mapping[str, str]) -> Path:
    home = environ.get("XDG_CONFIG_HOME", "")
    return (Path(home) if home else Path("~/.config").expanduser()) / "rolemesh" / "ctl.yaml"


def _address(url: str, key: str | None, ca_file: Path | None) -> GatewayAddress:
    if url.startswith(SOCKET_PREFIX):
        return GatewayAddress(sockets=(Path(url.removeprefix(SOCKET_PREFIX)),))
    try:
        path = UpstreamAddress.parse_url(url).prefix
    except ValueError as error:
        msg = f"{url!r} is not the URL of a gateway, which may also be unix:/PATH: {error}"
        raise BadUsage(msg) from error
    if not path.isascii() or not url.isprintable() or " " in url:
        msg = f"{url!r} is not the URL of a gateway: it has characters that no URL has"
        raise BadUsage(msg)
    return GatewayAddress(url=url.rstrip("/"), key=_checked(key), ca_file=ca_file)


def _address_in(file: Path, args: argparse.Namespace) -> GatewayAddress:
    # Not at the top: most have no such file.
    from rolemesh.config import tree  # noqa: PLC0415
    from rolemesh.config.yamlread import YamlError, read_yaml  # noqa: PLC0415

    try:
        root = read_yaml(file.read_text(encoding="utf-8"), str(file))
    except (OSError, UnicodeDecodeError, YamlError) as error:
        msg = f"{file} cannot be read: {error}"
        raise BadUsage(msg) from error
    for name, node in tree.entries(root).items():
        if name not in _FILE_KEYS or not isinstance(node.value, str):
            msg = f"{node.origin}: {name}: expected one of {', '.join(_FILE_KEYS)}, each a string"
            raise BadUsage(msg)
    said = {name: str(node.value) for name, node in tree.entries(root).items()}
    if "url" not in said:
        msg = f"{file}: url: expected the URL of the gateway, found nothing"
        raise BadUsage(msg)
    key = said.get("key")
    if key is not None and file.stat().st_mode & _OTHERS_READ:
        output.note(f"warning: {file}: others can read this key; run: chmod go-r {file}")
    if args.key_file is not None:
        key = _key_in(args.key_file)
    elif "key_file" in said:
        key = _key_in(_expanded(said["key_file"]))
    ca_file = args.ca_file or (_expanded(said["ca_file"]) if "ca_file" in said else None)
    return _address(said["url"], key, ca_file)


def _expanded(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        msg = f"{path}: this host knows no such user"
        raise BadUsage(msg) from error


def _key_in(file: Path) -> str:
    try:
        return text_of_key(file)
    except (OSError, UnicodeDecodeError) as error:
        msg = f"the key file {file} cannot be read: {getattr(error, 'strerror', '') or 'not text'}"
        raise NotReachable(msg) from error


def text_of_key(file: Path) -> str:
    """Return the key in a file, or the beginning of what is none; raises as files do."""
    with file.open(encoding="utf-8") as opened:
        return opened.read(_LONGEST_KEY).strip()


def _checked(key: str | None) -> str | None:
    if key is not None and not all("!" <= character <= "~" for character in key):
        msg = "the key is not one line of printable ASCII characters without spaces"
        raise BadUsage(msg)
    return key
