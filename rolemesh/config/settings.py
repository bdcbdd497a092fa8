"""Valid configuration tree -> frozen settings, one class per section; the only home of defaults.

Every default below is also what the schema documents. Names are the configuration's own keys, so
`limits.max_queue` in a file is `settings.limits.max_queue` in the code.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rolemesh.names import Alias, InstanceName, ModelId, NodeId, Role

Network = IPv4Network | IPv6Network


class Priority(IntEnum):
    """Who is served first where requests wait; lower is earlier."""

    INTERACTIVE = 0
    DEFAULT = 1
    BATCH = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerTls:
    """The certificate a daemon shows; with `client_ca_file` it asks its callers for one, too."""

    cert_file: Path
    key_file: Path
    client_ca_file: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientTls:
    """How a server is verified (None: by the system's authorities), and what it is shown."""

    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Listen:
    """Where a daemon accepts connections; with `tls` they are HTTPS."""

    host: tuple[str, ...] = ("127.0.0.1",)
    port: int
    tls: ServerTls | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientKey:
    """One accepted key: `name` appears in logs, `digest` is SHA-256 of the key.

    `roles` are the aliases it may use; None means any. `priority` is the highest its requests may
    have, `max_concurrent` how many of them run at once, `requests_per_minute` how many are taken;
    None: no bound of its own. `admin` opens the operator's paths.
    """

    name: str
    digest: bytes = field(repr=False)
    roles: frozenset[Alias] | None = None
    priority: Priority | None = None
    max_concurrent: int | None = None
    requests_per_minute: int | None = None
    admin: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayAuth:
    """Who may call the gateway. `open` permits a non-loopback listen without client keys."""

    clients: tuple[ClientKey, ...] = ()
    nodes: tuple[ClientKey, ...] = ()
    open: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayNetwork:
    """From which addresses; None means not restricted by address."""

    allow_clients: tuple[Network, ...] | None = None
    allow_nodes: tuple[Network, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Bounds of one request, in seconds.

    connect_s: one connection attempt. first_byte_s: request sent -> first body byte that is not an
    SSE comment. idle_s: between two bytes after that. total_s: the whole request, queue and all
    attempts included. load_wait_s: how much of it may be spent waiting for a model to load.
    keepalive_after_s: how long a streamed request is silent before its client gets SSE comments; 0:
    for ever.
    """

    connect_s: float = 5.0
    first_byte_s: float = 600.0
    idle_s: float = 120.0
    total_s: float = 3600.0
    load_wait_s: float = 300.0
    keepalive_after_s: float = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of what one client may make a daemon hold.

    `max_concurrent_per_key` counts the requests of one client key that run; None: no bound.
    """

    max_body_bytes: int = 64 * 1024 * 1024
    max_header_bytes: int = 64 * 1024
    header_timeout_s: float = 15.0
    max_queue: int = 64
    max_queue_wait_s: float = 60.0
    max_concurrent_per_key: int | None = None
    drain_s: float = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AliasSettings:
    """What every alias has.

    `defaults` are request fields filled in where the client is silent. `fallback` are the aliases
    tried, in this order, where this one cannot answer. `reserved_slots` of each candidate's are
    left free by requests for other aliases. `echo_model`: replies name the alias as their model.
    """

    alias: Alias
    defaults: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    timeouts: Timeouts = field(default_factory=Timeouts)
    fallback: tuple[Alias, ...] = ()
    priority: Priority = Priority.DEFAULT
    reserved_slots: int = 0
    echo_model: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyAlias(AliasSettings):
    """An alias answered by one fixed upstream.

    `model` is sent upstream in place of the alias; None leaves the client's word. `api_key` is
    what the upstream is shown. `max_in_flight` counts all requests sent to that URL.
    """

    proxy_url: str
    model: str | None
    api_key: str | None = field(default=None, repr=False)
    tls: ClientTls | None = None
    max_in_flight: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DiscoveredAlias(AliasSettings):
    """An alias answered by whichever node announces its role."""

    role: Role


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySettings:
    """Everything the gateway is told; `timeouts` are the ones without an alias of their own.

    `paths` are further paths to relay, and the slots that a request to each takes.
    """

    listen: Listen = field(default_factory=lambda: Listen(port=8000))
    default_model: Alias | None = None
    aliases_from_roles: bool = False
    auth: GatewayAuth = field(default_factory=GatewayAuth)
    network: GatewayNetwork = field(default_factory=GatewayNetwork)
    timeouts: Timeouts = field(default_factory=Timeouts)
    limits: Limits = field(default_factory=Limits)
    stale_after_s: float = 30.0
    nodes_tls: ClientTls | None = None
    cors_origins: tuple[str, ...] = ()
    paths: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    models: Mapping[Alias, ProxyAlias | DiscoveredAlias] = field(
        default_factory=lambda: MappingProxyType({})
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayLink:
    """One gateway a node reports to; `api_key` is a node key of that gateway."""

    url: str
    api_key: str | None = field(default=None, repr=False)
    tls: ClientTls | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaServer:
    """The llama-server program; `args` are appended to every command line.

    `origin` is FILE:LINE of `path`, for messages; "" where no file sets it. So is `args_origin`.
    """

    path: Path | None = None
    args: tuple[str, ...] = ()
    origin: str = field(default="", compare=False)
    args_origin: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """A LoRA adapter and how strongly it is applied."""

    path: Path
    scale: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftModel:
    """A smaller model that proposes up to `max_tokens` tokens for the large one to check."""

    path: Path
    gpu_layers: int | None = None
    max_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    """One set of weights and how llama-server runs it; None leaves the choice to llama-server.

    `context_size` is tokens per slot; None: the slots share what the model was trained for.
    `gpus` is over how many GPUs it is split; None: as many as it takes. `memory_mib` replaces the
    estimate of its GPU memory. `warm`: loaded whenever there is room. `idle_unload_s` None: as the
    policy says.

    `origin` is FILE:LINE of its definition, for messages; a definition that only moved is equal.
    """

    model_id: ModelId
    path: Path
    roles: tuple[Role, ...]
    context_size: int | None = None
    parallel: int = 1
    gpu_layers: int | None = None
    gpus: int | None = None
    cache_type_k: str | None = None
    cache_type_v: str | None = None
    flash_attention: bool | None = None
    batch_size: int | None = None
    ubatch_size: int | None = None
    threads: int | None = None
    lora: tuple[Lora, ...] = ()
    mmproj: Path | None = None
    draft_model: DraftModel | None = None
    chat_template: str | None = None
    chat_template_file: Path | None = None
    embeddings: bool = False
    rerank: bool = False
    pooling: str | None = None
    save_slots: bool = False
    memory_mib: int | None = None
    warm: bool = False
    idle_unload_s: float | None = None
    args: tuple[str, ...] = ()
    origin: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceSettings:
    """What an instance runs when nobody asks otherwise; pinned: never unloaded for another.

    `gpus` are the numbers of the GPUs it runs over, its own first; empty: its own alone, or as many
    as its model takes.
    """

    name: InstanceName
    model: ModelId | None = None
    pinned: bool = False
    gpus: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NodePolicy:
    """How the agent decides.

    `load_timeout_s` without any progress fails a load. A model unused for `idle_unload_s` is
    unloaded (0: never). A load that waited `switch_after_s` has a busy instance drained that has
    had its model for `min_resident_s`. `memory_margin_mib` of each GPU are left free. An instance
    that is busy without progress for `wedge_after_s` is restarted.
    """

    allow_cpu: bool = True
    load_timeout_s: float = 300.0
    idle_unload_s: float = 0.0
    switch_after_s: float = 30.0
    min_resident_s: float = 60.0
    memory_margin_mib: int = 256
    wedge_after_s: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSettings:
    """Everything a node agent is told; `models` in order of preference.

    `gpus` are those it may use, by number or UUID; None: all that no other agent uses.

    An agent has no queue of its own: the queue bounds among `limits` are the gateway's alone.
    """

    node_id: NodeId
    listen: Listen = field(default_factory=lambda: Listen(port=8100))
    advertise_url: str | None = None
    auth: tuple[ClientKey, ...] = ()
    gateways: tuple[GatewayLink, ...] = ()
    llama_server: LlamaServer = field(default_factory=LlamaServer)
    gpus: tuple[int | str, ...] | None = None
    models: Mapping[ModelId, ModelSettings] = field(default_factory=lambda: MappingProxyType({}))
    instances: Mapping[InstanceName, InstanceSettings] = field(
        default_factory=lambda: MappingProxyType({})
    )
    paths: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    policy: NodePolicy = field(default_factory=NodePolicy)
    limits: Limits = field(default_factory=lambda: Limits(drain_s=10.0))
