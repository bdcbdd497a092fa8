from pathlib import Path

import gguf

from tests.lab.shapes import ModelShape, write_shape


def test_a_shape_is_a_large_model_in_no_space(tmp_path: Path) -> None:
    path = write_shape(ModelShape(layers=32, embedding=4096, vocabulary=1000), tmp_path / "m.gguf")
    found = path.stat()
    assert found.st_size > 4 << 30
    assert found.st_blocks * 512 < 1 << 20
    (embedding,) = [
        each for each in gguf.GGUFReader(path).tensors if each.name == "token_embd.weight"
    ]
    assert list(embedding.shape) == [4096, 1000]
