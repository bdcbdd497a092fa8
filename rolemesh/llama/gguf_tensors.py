"""The tensor infos of a GGUF file: which weights there are, and whether all of them are in it.

The same things are refused that llama.cpp refuses (ggml/src/gguf.cpp).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Final

from rolemesh.llama.gguf_bytes import ByteReader, Damaged
from rolemesh.llama.gguf_types import TENSOR_TYPES

MAX_TENSORS: Final = 65_536  # in one file; the largest models have some 2000
_MAX_NAME_BYTES: Final = 63
_MAX_DIMENSIONS: Final = 4
_MAX_VALUES: Final = 1 << 63


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor: `dimensions` as in the file (the row's length first), `kind` its type's number.

    `offset` is where its `bytes` begin, from the start of the file's data.
    """

    name: str
    dimensions: tuple[int, ...]
    kind: int
    offset: int
    bytes: int

    @property
    def values(self) -> int:
        """How many numbers it holds."""
        return prod(self.dimensions)

    @property
    def type_name(self) -> str:
        """The name of its type, like Q4_K."""
        known = TENSOR_TYPES.get(self.kind)
        return known.name if known else f"type {self.kind}"


def read_tensors(
    reader: ByteReader, count: int, alignment: int, file_bytes: int
) -> tuple[tuple[TensorInfo, ...], int]:
    """Read the tensor infos; return them and how long the file has to be for all their data.

    Raises Damaged where they contradict themselves or each other.
    """
    found = [_read_tensor(reader) for _ in range(count)]
    if len({tensor.name for tensor in found}) < count:
        msg = "has two tensors of one name"
        raise Damaged(msg)
    start = _padded(reader.offset, alignment)
    tensors = _sized(found, alignment, file_bytes - start)
    needed = max((start + tensor.offset + tensor.bytes for tensor in tensors), default=0)
    return tensors, needed


def _read_tensor(reader: ByteReader) -> TensorInfo:
    name = reader.text(_MAX_NAME_BYTES)
    (dimension_count,) = reader.unpack("<I")
    if dimension_count > _MAX_DIMENSIONS:
        msg = f"claims a tensor of {dimension_count} dimensions"
        raise Damaged(msg)
    dimensions = reader.unpack(f"<{dimension_count}Q")
    kind, offset = reader.unpack("<IQ")
    values = prod(dimensions)
    known = TENSOR_TYPES.get(kind)
    if values >= _MAX_VALUES or (known and values % known.block_values):
        msg = f"claims a tensor of the shape {dimensions}"
        raise Damaged(msg)
    return TensorInfo(name, dimensions, kind, offset, known.bytes_of(values) if known else -1)


def _sized(
    tensors: Sequence[TensorInfo], alignment: int, data_bytes: int
) -> tuple[TensorInfo, ...]:
    """Check that the tensors lie behind each other, and size those of unknown types by that."""
    expected = 0
    for tensor in tensors:
        if tensor.offset != expected and not (expected == -1 and tensor.offset % alignment == 0):
            msg = f"has the data of a tensor at {tensor.offset}, not at {expected}"
            raise Damaged(msg)
        expected = -1 if tensor.bytes == -1 else _padded(tensor.offset + tensor.bytes, alignment)
    if all(tensor.bytes != -1 for tensor in tensors):
        return tuple(tensors)
    ends = [behind.offset for _, behind in pairwise(tensors)] + [data_bytes]
    return tuple(
        tensor if tensor.bytes != -1 else _resized(tensor, max(0, end - tensor.offset))
        for tensor, end in zip(tensors, ends, strict=True)
    )


def _resized(tensor: TensorInfo, size: int) -> TensorInfo:
    return TensorInfo(tensor.name, tensor.dimensions, tensor.kind, tensor.offset, size)


def _padded(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment
