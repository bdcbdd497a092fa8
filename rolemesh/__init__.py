"""RoleMesh: several local language models for agents, routed by role over a small network."""

from typing import Final

__version__: Final = "0.2.0"
