"""Whether a tree is surely valid by its JSON Schema, for the few keywords that our schemas use.

A program nearly always starts with a valid configuration, and loading jsonschema would be a large
part of its start. What is in doubt here is jsonschema's to judge, which also says what is wrong:
this check may doubt what is valid, but accepts nothing that is not (draft 2020-12).
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

Schema = Mapping[str, Any]
Part = Schema | bool
"""A schema inside a schema."""

_REFERENCE: Final = "#/$defs/"
_ANNOTATIONS: Final = frozenset({
    "$defs", "$schema", "default", "description", "title", "x-expected",
})  # fmt: skip
_TYPES: Final[Mapping[str, type | tuple[type, ...]]] = {
    "array": list,
    "boolean": bool,
    "integer": int,
    "null": type(None),
    "number": (int, float),
    "object": dict,
    "string": str,
}


class _Doubt(Exception):
    """Something that only jsonschema can judge."""


def is_surely_valid(instance: Any, schema: Schema) -> bool:
    """Tell whether `instance` (dicts, lists, scalars) is valid; False: ask jsonschema."""
    try:
        return _is_valid(instance, schema, schema.get("$defs", {}))
    except _Doubt:
        return False


def _is_valid(instance: Any, schema: Part, definitions: Schema) -> bool:
    if isinstance(schema, bool):
        return schema
    return all(
        _holds(keyword, instance, schema, definitions)
        for keyword in schema
        if keyword not in _ANNOTATIONS
    )


def _holds(keyword: str, instance: Any, schema: Schema, definitions: Schema) -> bool:
    if keyword in _ASSERTIONS:
        return _ASSERTIONS[keyword](instance, schema[keyword])
    if keyword in _APPLICATORS:
        return _APPLICATORS[keyword](instance, schema, definitions)
    raise _Doubt


# -- keywords that judge a value by itself -----------------------------------------------------


def _type(instance: Any, wanted: str | list[str]) -> bool:
    names = [wanted] if isinstance(wanted, str) else wanted
    if isinstance(instance, bool):
        return "boolean" in names
    if isinstance(instance, float) and "integer" in names:
        raise _Doubt  # 1.0 is a whole number
    return any(isinstance(instance, _TYPES[name]) for name in names)


def _const(instance: Any, wanted: Any) -> bool:
    if isinstance(instance, str) and isinstance(wanted, str):
        return instance == wanted
    if type(instance) is int and type(wanted) is int:
        return instance == wanted
    raise _Doubt  # 1.0 is 1, but true is not


def _unique(instance: Any, wanted: Any) -> bool:
    if not wanted or not isinstance(instance, list):
        return True
    if not all(
        type(item) is type(instance[0]) and isinstance(item, str | int) for item in instance
    ):
        raise _Doubt
    return len(set(instance)) == len(instance)


def _for(kind: str, holds: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    """Return an assertion about values of one type; all others satisfy it."""
    return lambda instance, wanted: (
        isinstance(instance, bool)
        or not isinstance(instance, _TYPES[kind])
        or holds(instance, wanted)
    )


_ASSERTIONS: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    "type": _type,
    "const": _const,
    "enum": lambda instance, wanted: any(_const(instance, each) for each in wanted),
    "pattern": _for("string", lambda text, wanted: re.search(wanted, text) is not None),
    "minLength": _for("string", lambda text, wanted: len(text) >= wanted),
    "maxLength": _for("string", lambda text, wanted: len(text) <= wanted),
    "minimum": _for("number", lambda number, wanted: number >= wanted),
    "maximum": _for("number", lambda number, wanted: number <= wanted),
    "exclusiveMinimum": _for("number", lambda number, wanted: number > wanted),
    "minItems": _for("array", lambda items, wanted: len(items) >= wanted),
    "uniqueItems": _unique,
    "required": _for("object", lambda mapping, wanted: mapping.keys() >= set(wanted)),
    "dependentRequired": _for(
        "object",
        lambda mapping, wanted: all(
            mapping.keys() >= set(needed) for key, needed in wanted.items() if key in mapping
        ),
    ),
}


# -- keywords that apply schemas ---------------------------------------------------------------


def _ref(instance: Any, schema: Schema, definitions: Schema) -> bool:
    reference: str = schema["$ref"]
    if not reference.startswith(_REFERENCE):
        raise _Doubt
    return _is_valid(instance, definitions[reference.removeprefix(_REFERENCE)], definitions)


def _all_of(instance: Any, schema: Schema, definitions: Schema) -> bool:
    return all(_is_valid(instance, part, definitions) for part in schema["allOf"])


def _if(instance: Any, schema: Schema, definitions: Schema) -> bool:
    applies = _is_valid(instance, schema["if"], definitions)
    return _is_valid(instance, schema.get("then" if applies else "else", True), definitions)


def _properties(instance: Any, schema: Schema, definitions: Schema) -> bool:
    """Judge the values of a mapping, by `properties` and `additionalProperties` together."""
    known, other = schema.get("properties", {}), schema.get("additionalProperties", True)
    return not isinstance(instance, dict) or all(
        _is_valid(value, known.get(key, other), definitions) for key, value in instance.items()
    )


def _property_names(instance: Any, schema: Schema, definitions: Schema) -> bool:
    wanted = schema["propertyNames"]
    return not isinstance(instance, dict) or all(
        _is_valid(key, wanted, definitions) for key in instance
    )


def _items(instance: Any, schema: Schema, definitions: Schema) -> bool:
    wanted = schema["items"]
    return not isinstance(instance, list) or all(
        _is_valid(item, wanted, definitions) for item in instance
    )


_APPLICATORS: Final[Mapping[str, Callable[[Any, Schema, Schema], bool]]] = {
    "$ref": _ref,
    "allOf": _all_of,
    "if": _if,
    "then": lambda _instance, _schema, _definitions: True,  # judged with "if"
    "else": lambda _instance, _schema, _definitions: True,
    "properties": _properties,
    "additionalProperties": _properties,
    "propertyNames": _property_names,
    "items": _items,
}
