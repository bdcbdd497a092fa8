"""The header of a GGUF model file: whether llama.cpp reads it, and what it says of itself.

Reads a bounded part of the file and never the weights. Format: magic "GGUF", u32 version, u64
tensor count, u64 key count, then key/value pairs; all little-endian.
"""

import io
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, BinaryIO, Final

from rolemesh.errors import NodeError
from rolemesh.llama.file_access import NotRegular, open_regular

READABLE_VERSIONS: Final = (2, 3)
MAX_KEYS: Final = 65_536
MAX_TENSORS: Final = 1_000_000
MAX_HEADER_BYTES: Final = 256 * 1024 * 1024
MAX_KEPT_TEXT_BYTES: Final = 4096
SMALLEST_HEADER_BYTES: Final = 24


class GgufFault(Enum):
    """What is wrong with a model file."""

    MISSING = "missing"
    UNREADABLE = "unreadable"
    NOT_A_FILE = "not a file"
    TOO_SHORT = "too short"
    NOT_GGUF = "not a GGUF"
    WRONG_ENDIANNESS = "wrong endianness"
    VERSION_TOO_OLD = "version too old"
    VERSION_TOO_NEW = "version too new"
    DAMAGED = "damaged"


class GgufError(NodeError):
    """A model file cannot be used; `explanation` says why, without the path."""

    def __init__(self, path: Path, fault: GgufFault, explanation: str) -> None:
        super().__init__(f"{path}: {explanation}")
        self.path = path
        self.fault = fault
        self.explanation = explanation


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufHeader:
    """What a model file says of itself; None where it does not say.

    `context_length` is what the model was trained for, in tokens; `block_count` its layers.
    """

    version: int
    file_bytes: int
    tensor_count: int
    name: str | None
    architecture: str | None
    context_length: int | None
    block_count: int | None


def read_header(path: Path) -> GgufHeader:
    """Read the header of a model file; raises GgufError saying what is wrong with it."""
    try:
        with open_regular(path) as file:
            return _HeaderReader(path, file).read()
    except FileNotFoundError as err:
        raise GgufError(path, GgufFault.MISSING, "does not exist") from err
    except NotRegular as err:
        explanation = f"{err.strerror}; a model is one file ending in .gguf"
        raise GgufError(path, GgufFault.NOT_A_FILE, explanation) from err
    except OSError as err:
        raise GgufError(path, GgufFault.UNREADABLE, f"cannot be read: {err.strerror}") from err


# Value types of the format: number -> struct code of the fixed-size ones.
_SCALARS: Final[Mapping[int, str]] = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
_STRING: Final = 8
_ARRAY: Final = 9
_MAX_ARRAY_DEPTH: Final = 4
_WANTED_OF_ARCHITECTURE: Final = ("context_length", "block_count")


class _HeaderReader:
    """Reads one header from start to end, never beyond the file or the bounds above."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path = path
        self._file = file
        self._file_bytes = file.seek(0, io.SEEK_END)
        self._end = min(self._file_bytes, MAX_HEADER_BYTES)
        file.seek(0)

    def read(self) -> GgufHeader:
        version = self._read_version()
        tensor_count, key_count = self._unpack("<QQ")
        if tensor_count > MAX_TENSORS or key_count > MAX_KEYS:
            raise self._damaged(f"claims {tensor_count} tensors and {key_count} metadata keys")
        found = self._read_metadata(key_count)
        architecture = _text(found.get("general.architecture"))
        return GgufHeader(
            version=version,
            file_bytes=self._file_bytes,
            tensor_count=tensor_count,
            name=_text(found.get("general.name")),
            architecture=architecture,
            context_length=_number(found.get(f"{architecture}.context_length")),
            block_count=_number(found.get(f"{architecture}.block_count")),
        )

    def _read_version(self) -> int:
        start = self._file.read(512)
        if not start.startswith(b"GGUF"):
            fault = GgufFault.NOT_GGUF if len(start) >= 4 else GgufFault.TOO_SHORT
            raise GgufError(self._path, fault, f"is not a GGUF model: it {_describe(start)}")
        if len(start) < SMALLEST_HEADER_BYTES:
            explanation = (
                f"ends after {len(start)} bytes, inside its header: an unfinished download?"
            )
            raise GgufError(self._path, GgufFault.TOO_SHORT, explanation)
        version = int.from_bytes(start[4:8], "little")
        self._check_version(version)
        self._file.seek(8)
        return version

    def _check_version(self, version: int) -> None:
        if version & 0xFFFF == 0 and version != 0:
            explanation = "is a big-endian GGUF; get or convert to a little-endian one"
            raise GgufError(self._path, GgufFault.WRONG_ENDIANNESS, explanation)
        if version < READABLE_VERSIONS[0]:
            explanation = (
                f"has GGUF version {version}, which llama.cpp no longer reads; get a newer file"
            )
            raise GgufError(self._path, GgufFault.VERSION_TOO_OLD, explanation)
        if version > READABLE_VERSIONS[-1]:
            known = " and ".join(map(str, READABLE_VERSIONS))
            explanation = f"has GGUF version {version}; versions {known} can be read"
            raise GgufError(self._path, GgufFault.VERSION_TOO_NEW, explanation)

    def _read_metadata(self, key_count: int) -> dict[str, Any]:
        """Return the keys wanted; stops at the last of them, which come before the long ones."""
        found: dict[str, Any] = {}
        for _ in range(key_count):
            key = self._read_text(MAX_KEPT_TEXT_BYTES)
            if _is_wanted(key):
                found[key] = self._read_value()
            else:
                self._skip_value(self._read_type())
            if _has_all_wanted(found):
                break
        return found

    def _read_value(self) -> Any:
        kind = self._read_type()
        if kind == _STRING:
            return self._read_text(MAX_KEPT_TEXT_BYTES)
        if kind in _SCALARS:
            return self._unpack("<" + _SCALARS[kind])[0]
        self._skip_value(kind)
        return None

    def _read_type(self) -> int:
        kind: int = self._unpack("<I")[0]
        return kind

    def _read_text(self, limit_bytes: int) -> str:
        (length,) = self._unpack("<Q")
        if length > limit_bytes:
            raise self._damaged(f"claims a text of {length} bytes in its metadata")
        return self._take(length).decode("utf-8", "replace")

    def _skip_value(self, kind: int, depth: int = 0) -> None:
        if kind in _SCALARS:
            self._skip(struct.calcsize(_SCALARS[kind]))
        elif kind == _STRING:
            self._skip(self._unpack("<Q")[0])
        elif kind == _ARRAY and depth < _MAX_ARRAY_DEPTH:
            self._skip_array(depth)
        else:
            raise self._damaged(f"has a metadata value of unknown type {kind}")

    def _skip_array(self, depth: int) -> None:
        kind, count = self._unpack("<IQ")
        if kind in _SCALARS:
            self._skip(count * struct.calcsize(_SCALARS[kind]))
            return
        if count > self._end:
            raise self._damaged(f"claims an array of {count} values in its metadata")
        for _ in range(count):
            self._skip_value(kind, depth + 1)

    def _unpack(self, layout: str) -> tuple[Any, ...]:
        return struct.unpack(layout, self._take(struct.calcsize(layout)))

    def _take(self, count: int) -> bytes:
        taken = self._file.read(count) if self._file.tell() + count <= self._end else b""
        if len(taken) < count:
            raise self._damaged("ends inside its header")
        return taken

    def _skip(self, count: int) -> None:
        if self._file.tell() + count > self._end:
            raise self._damaged("ends inside its header")
        self._file.seek(count, io.SEEK_CUR)

    def _damaged(self, what: str) -> GgufError:
        explanation = f"is a damaged GGUF: it {what}; download it again"
        return GgufError(self._path, GgufFault.DAMAGED, explanation)


def _is_wanted(key: str) -> bool:
    return key in {"general.name", "general.architecture"} or key.endswith(
        tuple(f".{name}" for name in _WANTED_OF_ARCHITECTURE)
    )


def _has_all_wanted(found: Mapping[str, Any]) -> bool:
    architecture = found.get("general.architecture")
    wanted = ("general.name", *(f"{architecture}.{name}" for name in _WANTED_OF_ARCHITECTURE))
    return architecture is not None and all(key in found for key in wanted)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _number(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


# What people put in place of a model by accident: first bytes -> what that is.
_LOOKALIKES: Final = (
    (b"PK\x03\x04", "starts with 'PK': a zip archive or a PyTorch checkpoint"),
    (b"version https://git-lfs", "is a Git LFS pointer: run `git lfs pull` where it came from"),
    (b"\x1f\x8b", "is compressed with gzip"),
    (b"\x28\xb5\x2f\xfd", "is compressed with zstd"),
    (b"\xfd7zXZ", "is compressed with xz"),
    (b"ggml", "is of the format before GGUF; get a newer file"),
    (b"lmgg", "is of the format before GGUF; get a newer file"),
    (b"tjgg", "is of the format before GGUF; get a newer file"),
    (b"fmgg", "is of the format before GGUF; get a newer file"),
    (b"\x80\x02", "is a Python pickle: a PyTorch checkpoint"),
)


def _describe(start: bytes) -> str:
    """Say what a file that begins with `start` looks like."""
    for magic, description in _LOOKALIKES:
        if start.startswith(magic):
            return description
    if not start:
        return "is empty: an unfinished download?"
    if not start.strip(b"\0"):
        return "starts with zeros: an unfinished download?"
    if start.lstrip()[:9].lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "is an HTML page: a failed download"
    if start[8:9] == b"{":
        return "looks like safetensors: convert it to GGUF"
    if start.lstrip()[:1] == b"{":
        return "is JSON text: a failed download?"
    return f"starts with the bytes {start[:4].hex(' ')}"
