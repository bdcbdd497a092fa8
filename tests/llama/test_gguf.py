"""What model files may be instead of a model, and what a good one says of itself."""

import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from rolemesh.llama.gguf import GgufError, GgufFault, read_header

U32, STRING, ARRAY, U64 = 4, 8, 9, 10


def text(value: str | bytes) -> bytes:
    encoded = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(encoded)) + encoded


def pair(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def header(*pairs: bytes, version: int = 3, tensors: int = 1, keys: int | None = None) -> bytes:
    count = len(pairs) if keys is None else keys
    return b"GGUF" + struct.pack("<IQQ", version, tensors, count) + b"".join(pairs)


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
    pair("nested", ARRAY, struct.pack("<IQ", ARRAY, 1) + struct.pack("<IQ", U32, 1) + bytes(4)),
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
    path = write(header(*OBSTACLES, *WHOLE, version=version, tensors=7))
    found = read_header(path)
    assert (found.version, found.tensor_count) == (version, 7)
    assert (found.name, found.architecture) == ("Tiny", "llama")
    assert (found.context_length, found.block_count) == (4096, 2)
    assert found.file_bytes == path.stat().st_size


def test_a_model_that_says_little_is_still_a_model(write: Callable[[bytes], Path]) -> None:
    found = read_header(write(header(pair("general.name", U32, bytes(4)))))
    assert (found.name, found.architecture, found.context_length) == (None, None, None)


def test_what_comes_after_the_last_wanted_key_is_not_read(write: Callable[[bytes], Path]) -> None:
    assert read_header(write(header(*WHOLE, b"\xff" * 64, keys=9))).name == "Tiny"


def test_a_real_model_is_read(make_model: Callable[..., Path]) -> None:
    found = read_header(make_model("tiny-a"))
    assert (found.name, found.architecture) == ("tiny-a", "llama")
    assert (found.context_length, found.block_count) == (4096, 2)


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


def test_a_model_with_a_large_vocabulary_is_read_within_a_second(
    write: Callable[[bytes], Path],
) -> None:
    tokens = b"".join(text(f"token {number}") for number in range(200_000))
    many = pair("tokenizer.tokens", ARRAY, struct.pack("<IQ", STRING, 200_000) + tokens)
    assert read_header(write(header(many, *WHOLE))).name == "Tiny"
