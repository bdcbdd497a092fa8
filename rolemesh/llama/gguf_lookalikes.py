"""What a file is that is no GGUF model: what people put in place of one by accident."""

from typing import Final

# First bytes -> what that is.
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


def describe_start(start: bytes) -> str:
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
