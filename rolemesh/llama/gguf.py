"""The header of a GGUF model file: whether llama.cpp reads it, and what it says of itself.

Reads a bounded part of the file and never the weights. Format, all little-endian: magic "GGUF",
u32 version, u64 tensor count, u64 key count, key/value pairs, tensor infos, then the data, aligned.
Source: docs/gguf.md of github.com/ggml-org/ggml, ggml/src/gguf.cpp of llama.cpp.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, Final, NoReturn

from rolemesh.errors import NodeError
from rolemesh.llama.file_access import NotRegular, open_regular
from rolemesh.llama.gguf_bytes import ByteReader, Damaged, file_size
from rolemesh.llama.gguf_lookalikes import describe_start
from rolemesh.llama.gguf_metadata import Metadata, Value, read_metadata
from rolemesh.llama.gguf_parts import model_parts
from rolemesh.llama.gguf_tensors import MAX_TENSORS, TensorInfo, read_tensors
from rolemesh.llama.gguf_types import FILE_TYPES

READABLE_VERSIONS: Final = (2, 3)
MAX_KEYS: Final = 16_384
MAX_HEADER_BYTES: Final = 64 * 1024 * 1024  # three times what the largest vocabularies take
SMALLEST_HEADER_BYTES: Final = 24
_GUESSED_FILE_TYPE: Final = 1024  # a flag beside the number


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
    TRUNCATED = "truncated"
    WRONG_PART = "wrong part"


class GgufError(NodeError):
    """A model file cannot be used; `explanation` says why, without the path."""

    def __init__(self, path: Path, fault: GgufFault, explanation: str) -> None:
        super().__init__(f"{path}: {explanation}")
        self.path = path
        self.fault = fault
        self.explanation = explanation


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufHeader:
    """What a model says of itself; None where it does not say.

    `context_length` is what it was trained for, in tokens; `block_count` its layers;
    `parameter_count` how many numbers its weights are; `quantisation` like Q4_K_M; `vocabulary` the
    tokens it knows; `kind` model, adapter or mmproj. `values` are its architecture's other keys,
    without the architecture's name, like `attention.head_count`.
    """

    version: int
    file_bytes: int
    tensor_count: int
    name: str | None
    architecture: str | None
    kind: str | None
    context_length: int | None
    block_count: int | None
    embedding_length: int | None
    parameter_count: int
    quantisation: str | None
    vocabulary: int | None
    split_count: int
    split_number: int
    split_tensor_count: int
    values: Mapping[str, Value] = field(repr=False)
    tensors: tuple[TensorInfo, ...] = field(repr=False)

    def number(self, key: str, default: int = 0) -> int:
        """Return a key of the architecture that is one whole number."""
        value = self.values.get(key)
        return value if isinstance(value, int) else default


def read_model(path: Path) -> GgufHeader:
    """Read the header of a model, of all its parts if it is in several.

    Raises GgufError, which names the part that is missing or wrong.
    """
    parts = model_parts(path)
    if not parts:
        explanation = "is a part of a model, but not the first; name the first"
        raise GgufError(path, GgufFault.WRONG_PART, explanation)
    first = read_header(parts[0])
    if first.split_count != len(parts):
        explanation = (
            f"is one of {first.split_count} parts of a model by its header, of {len(parts)} by its "
            f"name; parts are found by names that end in -00001-of-{first.split_count:05}.gguf"
        )
        raise GgufError(path, GgufFault.WRONG_PART, explanation)
    if len(parts) == 1:
        return first
    headers = [first, *map(read_header, parts[1:])]
    for number, (part, header) in enumerate(zip(parts, headers, strict=True)):
        if header.split_number != number or header.split_count != len(parts):
            explanation = f"is not part {number + 1} of {len(parts)}, which its name says"
            raise GgufError(part, GgufFault.WRONG_PART, explanation)
    return _joined(path, headers)


def read_header(path: Path) -> GgufHeader:
    """Read the header of one file; raises GgufError saying what is wrong with it."""
    try:
        with open_regular(path) as file:
            return _read(path, file)
    except Damaged as err:
        explanation = f"is a damaged GGUF: it {err}; download it again"
        raise GgufError(path, GgufFault.DAMAGED, explanation) from err
    except FileNotFoundError as err:
        raise GgufError(path, GgufFault.MISSING, "does not exist") from err
    except NotRegular as err:
        explanation = f"{err.strerror}; a model is one file ending in .gguf"
        raise GgufError(path, GgufFault.NOT_A_FILE, explanation) from err
    except OSError as err:
        raise GgufError(path, GgufFault.UNREADABLE, f"cannot be read: {err.strerror}") from err


def _read(path: Path, file: BinaryIO) -> GgufHeader:
    size = file_size(file)
    version = _read_version(path, file)
    reader = ByteReader(file, min(size, MAX_HEADER_BYTES))
    tensor_count, key_count = reader.unpack("<QQ")
    if tensor_count > MAX_TENSORS or key_count > MAX_KEYS:
        msg = f"claims {tensor_count} tensors and {key_count} metadata keys"
        raise Damaged(msg)
    metadata = read_metadata(reader, key_count)
    tensors, needed = read_tensors(reader, tensor_count, metadata.alignment, size)
    if needed > size:
        _refuse_truncated(path, size, needed)
    return _header(version, size, metadata, tensors)


def _header(
    version: int, size: int, metadata: Metadata, tensors: tuple[TensorInfo, ...]
) -> GgufHeader:
    values = metadata.of_architecture()
    vocabulary = values.get("vocab_size")
    return GgufHeader(
        version=version,
        file_bytes=size,
        tensor_count=len(tensors),
        name=metadata.text("general.name"),
        architecture=metadata.architecture,
        kind=metadata.text("general.type"),
        context_length=_number(values.get("context_length")),
        block_count=_number(values.get("block_count")),
        embedding_length=_number(values.get("embedding_length")),
        parameter_count=sum(tensor.values for tensor in tensors),
        quantisation=_quantisation(metadata, tensors),
        vocabulary=metadata.token_count or _number(vocabulary),
        split_count=max(1, metadata.number("split.count")),
        split_number=metadata.number("split.no"),
        split_tensor_count=metadata.number("split.tensors.count"),
        values=MappingProxyType(values),
        tensors=tensors,
    )


def _read_version(path: Path, file: BinaryIO) -> int:
    start = file.read(512)
    if not start.startswith(b"GGUF"):
        fault = GgufFault.NOT_GGUF if len(start) >= 4 else GgufFault.TOO_SHORT
        raise GgufError(path, fault, f"is not a GGUF model: it {describe_start(start)}")
    if len(start) < SMALLEST_HEADER_BYTES:
        explanation = f"ends after {len(start)} bytes, inside its header: an unfinished download?"
        raise GgufError(path, GgufFault.TOO_SHORT, explanation)
    version = int.from_bytes(start[4:8], "little")
    _check_version(path, version)
    file.seek(8)
    return version


def _check_version(path: Path, version: int) -> None:
    if version & 0xFFFF == 0 and version != 0:
        explanation = "is a big-endian GGUF; get or convert to a little-endian one"
        raise GgufError(path, GgufFault.WRONG_ENDIANNESS, explanation)
    if version < READABLE_VERSIONS[0]:
        explanation = (
            f"has GGUF version {version}, which llama.cpp no longer reads; get a newer file"
        )
        raise GgufError(path, GgufFault.VERSION_TOO_OLD, explanation)
    if version > READABLE_VERSIONS[-1]:
        known = " and ".join(map(str, READABLE_VERSIONS))
        explanation = f"has GGUF version {version}; versions {known} can be read"
        raise GgufError(path, GgufFault.VERSION_TOO_NEW, explanation)


def _refuse_truncated(path: Path, size: int, needed: int) -> NoReturn:
    explanation = (
        f"is incomplete: {needed - size} of its {needed} bytes are missing at the end; "
        "an unfinished download?"
    )
    raise GgufError(path, GgufFault.TRUNCATED, explanation)


def _quantisation(metadata: Metadata, tensors: tuple[TensorInfo, ...]) -> str | None:
    """Return what the file says its weights' mix of types is, else the type that most are of."""
    stated = FILE_TYPES.get(metadata.number("general.file_type", -1) & ~_GUESSED_FILE_TYPE)
    if stated is not None:
        return stated
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        sizes[tensor.type_name] += tensor.bytes
    return max(sizes, key=sizes.__getitem__, default=None)


def _joined(path: Path, headers: list[GgufHeader]) -> GgufHeader:
    """Return the header of a model in parts: the first part's words, the weights of all."""
    first = headers[0]
    tensors = tuple(chain.from_iterable(header.tensors for header in headers))
    if len(tensors) != first.split_tensor_count:
        explanation = (
            f"says its parts have {first.split_tensor_count} tensors, they have {len(tensors)}; "
            "the parts are of different models: download them again"
        )
        raise GgufError(path, GgufFault.WRONG_PART, explanation)
    return replace(
        first,
        file_bytes=sum(header.file_bytes for header in headers),
        tensor_count=len(tensors),
        parameter_count=sum(header.parameter_count for header in headers),
        tensors=tensors,
        quantisation=first.quantisation or headers[1].quantisation,
    )


def _number(value: object) -> int | None:
    return value if isinstance(value, int) else None
