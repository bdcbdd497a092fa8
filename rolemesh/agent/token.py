"""The agent's own key: made once, kept in the state directory, told to gateways that register."""

import re
import secrets
from pathlib import Path
from typing import Final

from rolemesh.runtime.state import StateFile

_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]{32,128}")


def load_token(state_directory: Path) -> str:
    """Return the token in `state_directory`, made at the first call.

    When it cannot be saved it is a new one at each start: gateways learn it when the agent
    registers anew.
    """
    file = StateFile(state_directory / "token.json", mode=0o600)
    tree = file.load()
    token = tree.get("token") if isinstance(tree, dict) else None
    if isinstance(token, str) and _TOKEN.fullmatch(token):
        return token
    token = secrets.token_urlsafe(32)
    file.save({"token": token})
    return token
