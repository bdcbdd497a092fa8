"""Makes LoRA adapters for the tiny models of tests.lab.models."""

from pathlib import Path

import gguf
import numpy as np

from tests.lab.models import Shape

RANK = 4


def make_adapter(path: Path, *, loud: bool = False) -> Path:
    """Write an adapter that changes nothing, or (`loud`) one that makes a model forget its words."""
    width = Shape().embedding
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(RANK))
    noise = np.random.default_rng(1).standard_normal((2, RANK * width)) * (100.0 if loud else 0.0)
    for half, numbers in zip("ab", noise, strict=True):
        shape = (RANK, width) if half == "a" else (width, RANK)
        name = f"blk.0.attn_output.weight.lora_{half}"
        writer.add_tensor(name, numbers.reshape(shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
