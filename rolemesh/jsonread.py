"""Typed getters over parsed JSON; every error names the field and what was found."""

from collections.abc import Mapping
from typing import Any, Final

_MISSING: Final = object()


class JsonError(ValueError):
    """A field is missing or of the wrong type."""


def _get(
    tree: Mapping[str, Any], key: str, wanted: type | tuple[type, ...], word: str, default: Any
) -> Any:
    value = tree.get(key, _MISSING)
    if value is _MISSING or (value is None and default is None):
        if default is _MISSING:
            msg = f"{key}: expected {word}, found nothing"
            raise JsonError(msg)
        return default
    if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
        msg = f"{key}: expected {word}, found {type(value).__name__}"
        raise JsonError(msg)
    return value


def as_object(value: Any) -> Mapping[str, Any]:
    """Return `value` if it is a JSON object."""
    if not isinstance(value, dict):
        msg = f"expected a JSON object, found {type(value).__name__}"
        raise JsonError(msg)
    return value


def get_str(tree: Mapping[str, Any], key: str, default: Any = _MISSING) -> str:
    """Return the string at `key`."""
    value: str = _get(tree, key, str, "a string", default)
    return value


def get_optional_str(tree: Mapping[str, Any], key: str) -> str | None:
    """Return the string at `key`, or None when it is absent or null."""
    value: str | None = _get(tree, key, str, "a string", None)
    return value


def get_bool(tree: Mapping[str, Any], key: str, default: Any = _MISSING) -> bool:
    """Return the boolean at `key`."""
    value: bool = _get(tree, key, bool, "a boolean", default)
    return value


def get_int(tree: Mapping[str, Any], key: str) -> int:
    """Return the integer at `key`."""
    value: int = _get(tree, key, int, "an integer", _MISSING)
    return value


def get_optional_int(tree: Mapping[str, Any], key: str) -> int | None:
    """Return the integer at `key`, or None when it is absent or null."""
    value: int | None = _get(tree, key, int, "an integer", None)
    return value


def get_optional_float(tree: Mapping[str, Any], key: str) -> float | None:
    """Return the number at `key`, or None when it is absent or null."""
    value: float | None = _get(tree, key, (int, float), "a number", None)
    return value


def get_strings(tree: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """Return the list of strings at `key`."""
    values = _get(tree, key, list, "a list of strings", _MISSING)
    for value in values:
        if not isinstance(value, str):
            msg = f"{key}: expected a list of strings, found {type(value).__name__} in it"
            raise JsonError(msg)
    return tuple(values)


def get_objects(tree: Mapping[str, Any], key: str) -> tuple[Mapping[str, Any], ...]:
    """Return the list of objects at `key`."""
    return tuple(map(as_object, _get(tree, key, list, "a list of objects", _MISSING)))


def get_optional_objects(tree: Mapping[str, Any], key: str) -> tuple[Mapping[str, Any], ...]:
    """Return the list of objects at `key`; none when it is absent."""
    return get_objects(tree, key) if key in tree else ()
