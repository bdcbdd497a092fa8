"""Devices that a llama-server has without a GPU: ggml-rpc-server, on this machine's CPU.

`rpc_programs` returns a llama-server that can use them, and the server of one. They are fetched as
tests/lab/llama_server.py does, into a tree of their own.
"""

from dataclasses import dataclass
from pathlib import Path

from tests.lab.cache import cache_folder, locked
from tests.lab.llama_server import fetch, is_complete, program_in

PACKAGES = ("llama.cpp-tools-extra", "libggml0-backend-rpc")
RPC_SERVER = "usr/libexec/x86_64-linux-gnu/llama/bin/ggml-rpc-server"


@dataclass(frozen=True, slots=True, kw_only=True)
class RpcPrograms:
    """A llama-server that knows RPC devices (--rpc HOST:PORT), and who serves one (-p PORT)."""

    llama_server: Path
    rpc_server: Path


def rpc_programs() -> RpcPrograms:
    """Return the programs; raises NoLlamaServer where they cannot be fetched."""
    tree = cache_folder("rpc-devices")
    with locked(tree):
        if not is_complete(tree):
            fetch(tree, PACKAGES, (RPC_SERVER,))
    program = program_in(tree)
    return RpcPrograms(llama_server=program, rpc_server=program.with_name(Path(RPC_SERVER).name))
