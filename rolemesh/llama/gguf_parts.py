"""The files of one model: a large one is cut into parts, and llama-server finds them by the first.

Names as llama.cpp makes them (llama_split_path in src/llama.cpp): STEM-00001-of-00003.gguf.
"""

import re
from pathlib import Path
from typing import Final

_PART: Final = re.compile(r"(?P<stem>.+)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf")


def model_parts(path: Path) -> tuple[Path, ...]:
    """Return the files of the model that `path` names; () when it names a part but not the first."""
    part = _PART.fullmatch(path.name)
    if part is None:
        return (path,)
    if int(part["number"]) != 1:
        return ()
    return tuple(
        path.with_name(f"{part['stem']}-{number:05}-of-{part['count']}.gguf")
        for number in range(1, int(part["count"]) + 1)
    )
