from collections.abc import Callable
from pathlib import Path

from rolemesh.agent.model_check import ModelProblems
from rolemesh.agent.model_details import model_details
from rolemesh.llama.gguf import read_model
from rolemesh.llama.memory import MemoryNeed
from rolemesh.names import ModelId

A, B = ModelId("a"), ModelId("b")


def test_a_model_is_described_by_its_file_and_its_need(make_model: Callable[..., Path]) -> None:
    path = make_model()
    need = MemoryNeed(weights=3 << 20, kv=1 << 20, compute=2 << 20, host=5 << 20)
    known = ModelProblems(models={}, headers={A: read_model(path)}, needs={A: need})
    details = model_details(known, A)
    assert details["architecture"] == "llama"
    assert details["parameters"] > 0
    assert details["file_mib"] == path.stat().st_size >> 20
    assert details["need_mib"] == 6
    assert set(model_details(known, B).values()) == {None}
