"""What runs and what is installed, part by part of the mesh, and how what is old gets restarted; pure.

A part is old when a start would run something else than what runs. Daemons of earlier versions do
not tell everything: what they leave out is unknown, not old.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

_EMPTY: Final = ("stopped", "failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One running program.

    `node_id` is None for the gateway, `instance` for daemons. `runs` and `installed` are versions,
    of llama-server builds. `is_old` is None where it cannot be told, `why_unknown` says why.
    `requests` run there. `when` and `how` it can be restarted, "" for one that is not old.
    """

    node_id: str | None = None
    instance: str | None = None
    part: str
    runs: str | None
    installed: str | None
    is_old: bool | None
    why_unknown: str = ""
    requests: int | None = None
    when: str = ""
    how: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the element of `parts`."""
        return asdict(self)


def parts_of(status: Mapping[str, Any]) -> Iterator[Part]:
    """Yield the parts that a gateway's status tells of; one without `version` has no gateway."""
    if status.get("version"):
        yield _daemon("rolemesh-gateway", None, status, status)
    for node in status.get("nodes", []):
        yield from _parts_of_node(node)


def daemons_by_version(parts: Iterable[Part]) -> Mapping[str, list[str]]:
    """Return where gateway and agents of each version run: more than one in the middle of an upgrade."""
    found: dict[str, list[str]] = {}
    for part in parts:
        if part.instance is None and part.runs:
            found.setdefault(part.runs, []).append(part.node_id or "the gateway")
    return found


def _parts_of_node(node: Mapping[str, Any]) -> Iterator[Part]:
    yield _daemon("rolemesh-node-agent", str(node["node_id"]), node, node.get("host", {}))
    for each in node.get("instances", []):
        if each.get("state") not in _EMPTY:
            yield from _parts_of_instance(node, each)


def _daemon(
    name: str, node_id: str | None, told: Mapping[str, Any], host: Mapping[str, Any]
) -> Part:
    """Return a daemon's part; `host` is where it tells what is installed."""
    runs, installed = told.get("version") or None, host.get("installed_version")
    is_old = True if host.get("program_replaced") else _differ(runs, installed)
    how = ""
    if is_old:
        verb = "reload" if name == "rolemesh-gateway" else "restart"
        how = f"systemctl {verb} {name}"
    return Part(
        node_id=node_id,
        part=name,
        runs=runs,
        installed=installed,
        is_old=is_old,
        why_unknown="" if is_old is not None else _untold(runs, host),
        when="now" if is_old else "",
        how=how,
    )


def _untold(runs: str | None, host: Mapping[str, Any]) -> str:
    if not runs:
        return "it does not tell its version"
    if "installed_version" in host:
        return "its files are gone: it was removed, or Python is another one now"
    return f"{runs} does not tell what is installed"


def _parts_of_instance(node: Mapping[str, Any], each: Mapping[str, Any]) -> Iterator[Part]:
    host = node.get("host", {})
    runs, installed = each.get("version") or None, host.get("installed_version")
    is_old = _differ(runs, installed)
    changed = each.get("program_changed")
    when, how = _restart(node, each) if is_old or changed else ("", "")
    common: dict[str, Any] = {
        "node_id": str(node["node_id"]),
        "instance": each.get("instance"),
        "requests": each.get("requests"),
    }
    yield Part(
        **common,
        part="rolemesh-llama",
        runs=runs,
        installed=installed,
        is_old=is_old,
        why_unknown="" if is_old is not None else _why_unknown(node, each),
        when=when if is_old else "",
        how=how if is_old else "",
    )
    yield Part(
        **common,
        part="llama-server",
        runs=each.get("build") or None,
        installed=host.get("installed_build"),
        is_old=changed,
        why_unknown="" if changed is not None else _why_unknown(node, each),
        when=when if changed else "",
        how=how if changed else "",
    )


def _why_unknown(node: Mapping[str, Any], each: Mapping[str, Any]) -> str:
    if "program_changed" not in each:
        return f"the agent, {node.get('version') or 'of unknown version'}, does not tell"
    if each.get("version_problem"):
        return str(each["version_problem"])
    state = each.get("state")
    return f"it is {state}" if state != "ready" else "it cannot be told from what is installed"


def _differ(runs: Any, installed: Any) -> bool | None:
    return runs != installed if runs and installed else None


def _restart(node: Mapping[str, Any], each: Mapping[str, Any]) -> tuple[str, str]:
    """Return when an instance can be restarted, and the command that waits for that and does it."""
    name, node_id = each.get("instance"), node["node_id"]
    if each.get("state") != "ready":
        return "at its next load, which comes by itself", ""
    count = each.get("requests") or 0
    when = f"after its {count} request{'' if count == 1 else 's'}" if count else "now: idle"
    if each.get("pinned"):
        when += ", pinned"
    place = f"{node_id}/{name}"
    how = f"rolemeshctl drain {place} --wait && rolemeshctl undrain {place}"
    model = each.get("model_id")
    if model and model != each.get("assigned_model_id") and each.get("pinned"):
        # Nothing but the pin says that it shall have it again.
        how += f" && rolemeshctl load {model} --on {name} --node {node_id}"
    return when, how
