"""Holds replies against the OpenAPI document of the gateway."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry
from referencing.jsonschema import DRAFT202012

from rolemesh.gateway.openapi import document

_URI = "urn:openapi"
METHODS = ("get", "post", "put", "patch", "delete")


def resolved(node: Any) -> Any:
    """Follow a `$ref` into the document."""
    while isinstance(node, Mapping) and "$ref" in node:
        found: Any = document()
        for step in node["$ref"].removeprefix("#/").split("/"):
            found = found[step]
        node = found
    return node


def operations() -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Yield method, path and what is said of each, as in `GET`, `/v1/models/{alias}`."""
    for path, item in document()["paths"].items():
        for method, operation in resolved(item).items():
            if method in METHODS:
                yield method.upper(), path, operation


def operation_of(method: str, path: str) -> Mapping[str, Any]:
    """Return what is said of a method and the path of a request, without its query."""
    path = path.partition("?")[0]
    for known, template, operation in operations():
        # Aliases, and the rest of an agent's path, may have slashes in them.
        pattern = re.sub(r"\\\{(\w+)\\\}", _any, re.escape(template))
        if known == method and re.fullmatch(pattern, path):
            return operation
    raise AssertionError(f"{method} {path} is not in the document")


def _any(match: re.Match[str]) -> str:
    return ".+" if match[1] in {"alias", "rest"} else "[^/]+"


def validator(schema: Mapping[str, Any]) -> Draft202012Validator:
    """Return what checks instances of a schema of the document."""
    whole = DRAFT202012.create_resource(document())
    absolute = json.loads(json.dumps(schema).replace('"#/components/', f'"{_URI}#/components/'))
    return Draft202012Validator(absolute, registry=Registry().with_resource(_URI, whole))


def check(
    operation: Mapping[str, Any], status: int, fields: Mapping[str, str], body: bytes
) -> None:
    """Assert that a reply is as the document says; `fields` are its headers by lower-case name."""
    said = operation["responses"].get(str(status))
    assert said is not None, f"{status} is not said of {operation['summary']}: {body[:300]!r}"
    check_reply(resolved(said), fields, body)


def check_reply(said: Mapping[str, Any], fields: Mapping[str, str], body: bytes) -> None:
    """Assert that a reply is as one response of the document says."""
    for name, reference in said["headers"].items():
        header = resolved(reference)
        value = fields.get(name.lower())
        assert value is not None or not header.get("required", False), f"{name} is missing"
        if value is not None:
            validator(header["schema"]).validate(value)
    kind = fields["content-type"].partition(";")[0]
    assert kind in said["content"], f"{kind} is not said"
    schema = said["content"][kind]["schema"]
    validator(schema).validate(json.loads(body) if kind == "application/json" else body.decode())
