from pathlib import Path

import pytest

from rolemesh.llama.gguf_parts import model_parts


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("m.gguf", ["m.gguf"]),
        ("m-00001-of-00001.gguf", ["m-00001-of-00001.gguf"]),
        ("m-00001-of-00002.gguf", ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]),
        ("m-00002-of-00002.gguf", []),
        ("m-1-of-2.gguf", ["m-1-of-2.gguf"]),
    ],
)
def test_parts_are_found_by_the_name_of_the_first(name: str, parts: list[str]) -> None:
    folder = Path("/models")
    assert model_parts(folder / name) == tuple(folder / part for part in parts)
