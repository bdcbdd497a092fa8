"""What model files may be instead of a model, and what a good one says of itself."""

import os
import random
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest

from rolemesh.llama.gguf import GgufError, GgufFault, GgufHeader, read_header, read_model

U32, BOOL, STRING, ARRAY, U64 = 4, 7, 8, 9, 10
F32, Q4_K, OF_TOMORROW = 0, 12, 99


def text(value: str | bytes) -> bytes:
    encoded = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(encoded)) + encoded


def pair(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def header(*pairs: bytes, version: int = 3, tensors: int = 0, keys: int | None = None) -> bytes:
    count = len(pairs) if keys is None else keys
    return b"GGUF" + struct.pack("<IQQ", version, tensors, count) + b"".join(pairs)


def tensor(name: str, *dimensions: int, kind: int = F32, offset: int = 0) -> bytes:
    shape = struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions)
    return text(name) + shape + struct.pack("<IQ", kind, offset)


def model(*tensors: bytes, data: int, pairs: tuple[bytes, ...] = ()) -> bytes:
    """Return a whole file with `data` bytes of weights."""
    head = header(*(pairs or WHOLE), tensors=len(tensors)) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + bytes(data)


WHOLE = (
    pair("general.architecture", STRING, text("llama")),
    pair("general.name", STRING, text("Tiny")),
    pair("llama.context_length", U32, struct.pack("<I", 4096)),
    pair("llama.block_count", U32, struct.pack("<I", 2)),
)
# What stands between the start of real files and what we look for.
OBSTACLES = (
    pair("tokenizer.tokens", ARRAY, struct.pack("<IQ", STRING, 2) + text("a") + text("bc")),
    pair("tokenizer.scores", ARRAY, struct.pack("<IQ", U32, 3) + bytes(12)),
    pair("general.size", U64, struct.pack("<Q", 1 << 40)),
    pair("general.tags", ARRAY, struct.pack("<IQ", STRING, 1) + text("chat")),
    pair("general.url", STRING, text("https://models.example/" + 9999 * "x")),
)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[bytes], Path]:
    def write_file(content: bytes) -> Path:
        path = tmp_path / "model.gguf"
        path.write_bytes(content)
        return path

    return write_file


def refused(path: Path) -> GgufError:
    with pytest.raises(GgufError) as caught:
        read_header(path)
    assert str(caught.value) == f"{path}: {caught.value.explanation}"
    return caught.value


@pytest.mark.parametrize("version", [2, 3])
def test_a_model_says_what_it_is(write: Callable[[bytes], Path], version: int) -> None:
    path = write(header(*OBSTACLES, *WHOLE, version=version))
    found = read_header(path)
    assert (found.version, found.tensor_count) == (version, 0)
    assert (found.name, found.architecture) == ("Tiny", "llama")
    assert (found.context_length, found.block_count) == (4096, 2)
    assert found.file_bytes == path.stat().st_size


def test_a_model_that_says_little_is_still_a_model(write: Callable[[bytes], Path]) -> None:
    found = read_header(write(header(pair("general.name", U32, bytes(4)))))
    assert (found.name, found.architecture, found.context_length) == (None, None, None)


def test_a_real_model_is_read(make_model: Callable[..., Path]) -> None:
    path = make_model("tiny-a")
    found = read_header(path)
    assert (found.name, found.architecture) == ("tiny-a", "llama")
    assert (found.context_length, found.block_count) == (4096, 2)
    assert (found.embedding_length, found.quantisation) == (64, "F16")
    assert found.vocabulary == found.number("vocab_size") > 600
    stored = gguf.GGUFReader(path).tensors
    assert found.parameter_count == sum(each.n_elements for each in stored)
    assert [(each.name, each.bytes) for each in found.tensors] == [
        (each.name, each.n_bytes) for each in stored
    ]


@pytest.mark.parametrize(
    ("content", "fault", "explanation"),
    [
        (b"", GgufFault.TOO_SHORT, "is not a GGUF model: it is empty: an unfinished download?"),
        (b"GG", GgufFault.TOO_SHORT, "is not a GGUF model: it starts with the bytes 47 47"),
        (
            b"GGUF\3\0\0\0",
            GgufFault.TOO_SHORT,
            "ends after 8 bytes, inside its header: an unfinished download?",
        ),
        (bytes(64), GgufFault.NOT_GGUF, "starts with zeros: an unfinished download?"),
        (b"PK\3\4" + bytes(60), GgufFault.NOT_GGUF, "starts with 'PK': a zip archive"),
        (b"\n<!DOCTYPE html><html>", GgufFault.NOT_GGUF, "is an HTML page: a failed download"),
        (b"<html><body>404", GgufFault.NOT_GGUF, "is an HTML page: a failed download"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
            GgufFault.NOT_GGUF,
            "is a Git LFS pointer: run `git lfs pull`",
        ),
        (b'{"error": "gated"}', GgufFault.NOT_GGUF, "is JSON text: a failed download?"),
        (b'\x40\0\0\0\0\0\0\0{"a"', GgufFault.NOT_GGUF, "looks like safetensors"),
        (b"tjgg" + bytes(60), GgufFault.NOT_GGUF, "is of the format before GGUF"),
        (b"\x1f\x8b\x08" + bytes(60), GgufFault.NOT_GGUF, "is compressed with gzip"),
        (b"#!/bin/sh\n", GgufFault.NOT_GGUF, "starts with the bytes 23 21 2f 62"),
        (
            b"GGUF" + struct.pack(">IQQ", 3, 1, 0),
            GgufFault.WRONG_ENDIANNESS,
            "is a big-endian GGUF; get or convert to a little-endian one",
        ),
        (header(version=1), GgufFault.VERSION_TOO_OLD, "has GGUF version 1, which llama.cpp"),
        (header(version=4), GgufFault.VERSION_TOO_NEW, "has GGUF version 4; versions 2 and 3"),
        (header(tensors=1 << 60), GgufFault.DAMAGED, "claims 1152921504606846976 tensors"),
        (header(keys=1 << 40), GgufFault.DAMAGED, "metadata keys; download it again"),
        (header(*WHOLE)[:-2], GgufFault.DAMAGED, "ends inside its header; download it again"),
        (header(struct.pack("<Q", 1 << 62), keys=1), GgufFault.DAMAGED, "a text of"),
        (header(pair("a", STRING, struct.pack("<Q", 9))), GgufFault.DAMAGED, "ends inside"),
        (header(pair("a", 77, b"")), GgufFault.DAMAGED, "a metadata value of unknown type 77"),
        (
            header(pair("a", ARRAY, struct.pack("<IQ", STRING, 1 << 50))),
            GgufFault.DAMAGED,
            "claims an array of 1125899906842624 values",
        ),
        (
            header(pair("a", ARRAY, struct.pack("<IQ", ARRAY, 1) * 9)),
            GgufFault.DAMAGED,
            "unknown type 9",
        ),
        (header(WHOLE[0], WHOLE[0]), GgufFault.DAMAGED, "has two values of one metadata key"),
        (
            header(pair("general.alignment", U32, struct.pack("<I", 48))),
            GgufFault.DAMAGED,
            "claims an alignment of 48 bytes",
        ),
        (header(*WHOLE, tensors=1), GgufFault.DAMAGED, "ends inside its header"),
        (
            model(tensor("a", 32), tensor("a", 32, offset=128), data=256),
            GgufFault.DAMAGED,
            "has two tensors of one name",
        ),
        (
            model(tensor("a", 32), tensor("b", 32, offset=64), data=256),
            GgufFault.DAMAGED,
            "has the data of a tensor at 64, not at 128",
        ),
        (model(tensor("a", 1, 1, 1, 1, 1), data=4), GgufFault.DAMAGED, "of 5 dimensions"),
        (model(tensor("a", 1 << 40, 1 << 40), data=4), GgufFault.DAMAGED, "of the shape"),
        (model(tensor("a", 100, kind=Q4_K), data=64), GgufFault.DAMAGED, "of the shape (100,)"),
        (
            model(tensor("a", 1000, 1000), tensor("b", 8, offset=4_000_000), data=1_000_000),
            GgufFault.TRUNCATED,
            "is incomplete: 3000032 of its 4000288 bytes are missing at the end; an unfinished",
        ),
    ],
)
def test_what_is_no_model_is_named(
    write: Callable[[bytes], Path], content: bytes, fault: GgufFault, explanation: str
) -> None:
    error = refused(write(content))
    assert error.fault is fault
    assert explanation in error.explanation


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    error = refused(tmp_path / "absent.gguf")
    assert (error.fault, error.explanation) == (GgufFault.MISSING, "does not exist")


def test_a_directory_is_named(tmp_path: Path) -> None:
    error = refused(tmp_path)
    assert error.fault is GgufFault.NOT_A_FILE
    assert error.explanation == "is a directory; a model is one file ending in .gguf"


def test_a_pipe_does_not_hang_the_reader(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert refused(tmp_path / "pipe").fault is GgufFault.NOT_A_FILE


def test_what_may_not_be_read_is_named(write: Callable[[bytes], Path]) -> None:
    path = write(header(*WHOLE))
    loop = path.with_name("loop.gguf")
    loop.symlink_to(loop)
    error = refused(loop)
    assert error.fault is GgufFault.UNREADABLE
    assert error.explanation.startswith("cannot be read: Too many levels of symbolic links")


def many(key: str, count: int) -> bytes:
    words = b"".join(text(f"token {number}") for number in range(count))
    return pair(key, ARRAY, struct.pack("<IQ", STRING, count) + words)


def test_a_large_vocabulary_is_counted_and_not_kept(write: Callable[[bytes], Path]) -> None:
    path = write(header(many("tokenizer.ggml.tokens", 200_000), *WHOLE))
    tracemalloc.start()
    try:
        found = read_header(path)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (found.name, found.vocabulary) == ("Tiny", 200_000)
    assert peak_bytes < 2 << 20


def test_weights_are_described(write: Callable[[bytes], Path]) -> None:
    content = model(
        tensor("a", 256, 2, kind=Q4_K), tensor("b", 32, kind=F32, offset=288), data=288 + 128
    )
    found = read_header(write(content))
    assert (found.tensor_count, found.parameter_count) == (2, 544)
    assert [(each.name, each.type_name, each.bytes) for each in found.tensors] == [
        ("a", "Q4_K", 288),
        ("b", "F32", 128),
    ]
    assert found.quantisation == "Q4_K"  # of most bytes: the file does not say
    stated = pair("general.file_type", U32, struct.pack("<I", 15))
    assert read_header(write(header(*WHOLE, stated))).quantisation == "Q4_K_M"


def test_weights_of_a_type_from_tomorrow_take_what_is_left_for_them(
    write: Callable[[bytes], Path],
) -> None:
    found = read_header(
        write(
            model(
                tensor("a", 64, kind=OF_TOMORROW),
                tensor("b", 8, offset=96),
                tensor("c", 64, kind=OF_TOMORROW, offset=128),
                data=128 + 40,
            )
        )
    )
    assert [each.bytes for each in found.tensors] == [96, 32, 40]
    assert found.tensors[0].type_name == "type 99"


def test_a_value_may_be_given_for_each_layer(write: Callable[[bytes], Path]) -> None:
    heads = pair("llama.attention.head_count_kv", ARRAY, struct.pack("<IQ3I", U32, 3, 4, 0, 4))
    windows = pair(
        "llama.attention.sliding_window_pattern", ARRAY, struct.pack("<IQ3?", BOOL, 3, 1, 0, 1)
    )
    found = read_header(write(header(*WHOLE, heads, windows)))
    assert found.values["attention.head_count_kv"] == (4, 0, 4)
    assert found.values["attention.sliding_window_pattern"] == (1, 0, 1)
    assert found.number("attention.head_count_kv", 7) == 7  # not one number
    assert "context_length" in found.values


def test_whatever_is_flipped_or_cut_is_a_model_or_refused(write: Callable[[bytes], Path]) -> None:
    whole = model(
        tensor("a", 256, 2, kind=Q4_K),
        tensor("b", 32, offset=288),
        data=416,
        pairs=(*OBSTACLES, *WHOLE, many("tokenizer.ggml.tokens", 50)),
    )
    chance = random.Random(6)
    refused_count = 0
    for _ in range(1000):
        content = bytearray(whole)
        for _ in range(chance.randrange(1, 4)):
            content[chance.randrange(len(content))] = chance.randrange(256)
        path = write(
            bytes(content[: chance.choice((len(content), chance.randrange(len(content))))])
        )
        try:
            assert isinstance(read_model(path), GgufHeader)
        except GgufError:
            refused_count += 1
    assert 300 < refused_count < 1000


# --- models in parts ---------------------------------------------------------------------------


def split(folder: Path, *parts: bytes) -> list[Path]:
    paths = [
        folder / f"big-{number:05}-of-{len(parts):05}.gguf" for number in range(1, len(parts) + 1)
    ]
    for path, part in zip(paths, parts, strict=True):
        path.write_bytes(part)
    return paths


def part(number: int, count: int, *tensors: bytes, data: int, total: int) -> bytes:
    pairs = (
        *(WHOLE if number == 0 else ()),
        pair("split.no", 2, struct.pack("<H", number)),
        pair("split.count", 2, struct.pack("<H", count)),
        pair("split.tensors.count", 5, struct.pack("<i", total)),
    )
    return model(*tensors, data=data, pairs=pairs)


def test_a_model_in_parts_is_all_of_them(tmp_path: Path) -> None:
    first, _ = split(
        tmp_path,
        part(0, 2, data=0, total=2),
        part(1, 2, tensor("a", 32), tensor("b", 8, offset=128), data=160, total=2),
    )
    found = read_model(first)
    assert (found.name, found.tensor_count, found.parameter_count) == ("Tiny", 2, 40)
    assert found.file_bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert found.quantisation == "F32"


def test_what_is_wrong_with_parts_is_named(tmp_path: Path) -> None:
    first, second = split(
        tmp_path, part(0, 2, data=0, total=1), part(1, 2, tensor("a", 8), data=32, total=1)
    )

    def wrong(path: Path) -> tuple[Path, str]:
        with pytest.raises(GgufError) as caught:
            read_model(path)
        return caught.value.path, caught.value.explanation

    assert wrong(second) == (second, "is a part of a model, but not the first; name the first")
    alone = tmp_path / "alone.gguf"
    alone.write_bytes(first.read_bytes())
    assert wrong(alone)[1].startswith(
        "is one of 2 parts of a model by its header, of 1 by its name"
    )
    swapped = second.read_bytes()
    second.write_bytes(first.read_bytes())
    assert wrong(first) == (second, "is not part 2 of 2, which its name says")
    second.write_bytes(part(1, 2, tensor("a", 8), tensor("b", 8, offset=32), data=64, total=2))
    assert wrong(first)[1].startswith("says its parts have 1 tensors, they have 2")
    second.write_bytes(swapped[:-8])
    assert wrong(first)[0] == second
    second.unlink()
    assert wrong(first) == (second, "does not exist")
