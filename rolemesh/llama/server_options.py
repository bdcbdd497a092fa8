"""Which options a llama-server has, read from its --help, and whether arguments use them rightly; pure.

The format is that of llama.cpp's common/arg.cpp since autumn 2024: an option's line begins with its
names, separated by commas, then what its value is called; the description is indented by 40 columns.
"""

import difflib
import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

_INDENT: Final = 40
_GAP: Final = "   "
_NAMES: Final = re.compile(r"(?:-[^\s,]+,\s*)*-[^\s,]+")
# Two values, as in `START END`; `<pattern>=<type>` is one.
_TWO_VALUES: Final = re.compile(r"[A-Z]+ [A-Z]+")
_BRACED: Final = re.compile(r"\{([\w.-]+(?:,[\w.-]+)+)\}")
_ALLOWED: Final = re.compile(r"allowed values: ([\w.-]+(?:, [\w.-]+)*)")
_TEMPLATES: Final = re.compile(r"list of built-in templates: ([\w.-]+(?:, [\w.-]+)*)")
_REMOVED: Final = re.compile(r"the argument has been removed[. ]*(.*?)(?: \(env: \w+\))?")
# Without these, whatever was read is no help of a llama-server.
_ESSENTIAL: Final = ("--model", "--host", "--port", "--ctx-size")
_LONGEST_SHOWN: Final = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOption:
    """One option as its build describes it.

    `value_count` is how many arguments follow it. `allowed` are the values it takes; empty: not
    said. `takes_list`: several values are given as one, with commas. `replacement` is what the build
    says of an option that it knows only to refuse it; None for one that it has.
    """

    name: str
    value_count: int = 0
    value_hint: str = ""
    allowed: tuple[str, ...] = ()
    takes_list: bool = False
    replacement: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerBuild:
    """What one build of llama-server is called, and its options under each of their names.

    No options: nobody could ask it, and nothing is known to be wrong.
    """

    version: str = ""
    options: Mapping[str, ServerOption] = field(default_factory=lambda: MappingProxyType({}))
    chat_templates: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What messages call it: "llama-server 0.7.0 (build 11669)"."""
        return f"llama-server {self.version}".rstrip()

    def option(self, name: str) -> ServerOption | None:
        """Return an option it has; llama-server takes `--ctx_size` for `--ctx-size`."""
        option = self.options.get(plain_name(name))
        return None if option is None or option.replacement is not None else option

    def choose(self, names: Sequence[str]) -> str | None:
        """Return the first of these names that it knows; None when it knows none."""
        if not self.options:
            return names[0]
        return next((name for name in names if self.option(name) is not None), None)

    def find(self, names: Sequence[str]) -> ServerOption | None:
        """Return the first option it has by any of these names."""
        return next(filter(None, map(self.option, names)), None)


UNKNOWN_BUILD: Final = ServerBuild()


def read_build(help_text: str, version_text: str) -> ServerBuild:
    """Return what a llama-server says of itself; UNKNOWN_BUILD when that is no help of one."""
    options: dict[str, ServerOption] = {}
    templates: tuple[str, ...] = ()
    for names, hint, description in _entries(help_text):
        option = _option(names[-1], hint, description)
        options |= dict.fromkeys(names, option)
        if option.name == "--chat-template":
            templates = _listed(_TEMPLATES, description, ", ")
    if any(name not in options for name in _ESSENTIAL):
        return UNKNOWN_BUILD
    return ServerBuild(
        version=_version(version_text),
        options=MappingProxyType(options),
        chat_templates=templates,
    )


def _version(text: str) -> str:
    """`version: 0.7.0 (build 11669, commit Debian)` -> `0.7.0 (build 11669)`."""
    found = re.search(r"^version: (\S+)(?: \(([^),]{1,60}))?", text, re.MULTILINE)
    if found is None:
        return ""
    return f"{found[1]} ({found[2]})" if found[2] else found[1]


def _entries(help_text: str) -> Iterator[tuple[tuple[str, ...], str, str]]:
    """Yield names, value hint and description of each option."""
    head = ""
    description: list[str] = []
    for line in help_text.splitlines():
        if not line.startswith((" ", "-")) or line.startswith("-----"):
            continue
        if line.startswith("-"):
            yield from _entry(head, description)
            head, rest = _split_head(line)
            description = [rest]
        else:
            description.append(line.strip())
    yield from _entry(head, description)


def _split_head(line: str) -> tuple[str, str]:
    """Return names and value hint, and the description if there was room for it on the line."""
    if line[_INDENT - len(_GAP) : _INDENT] == _GAP:
        return line[:_INDENT].rstrip(), line[_INDENT:].strip()
    return line.rstrip(), ""


def _entry(head: str, description: list[str]) -> Iterator[tuple[tuple[str, ...], str, str]]:
    found = _NAMES.match(head)
    if found is not None:
        names = tuple(name.strip() for name in found[0].split(","))
        yield names, head[found.end() :].strip(), " ".join(filter(None, description))


def _option(name: str, hint: str, description: str) -> ServerOption:
    removed = _REMOVED.fullmatch(description)
    return ServerOption(
        name=name,
        value_count=(2 if _TWO_VALUES.fullmatch(hint) else 1) if hint else 0,
        value_hint=hint,
        allowed=_listed(_BRACED, hint, ",") or _listed(_ALLOWED, description, ", "),
        takes_list="comma-separated" in description or hint.endswith(",..."),
        replacement=removed[1] if removed else None,
    )


def _listed(pattern: re.Pattern[str], text: str, separator: str) -> tuple[str, ...]:
    found = pattern.search(text)
    return tuple(found[1].split(separator)) if found else ()


def plain_name(argument: str) -> str:
    """Return the name of a long option as llama-server reads it: with dashes only."""
    return argument.replace("_", "-") if argument.startswith("--") else argument


def wrong_arguments(build: ServerBuild, args: Sequence[str]) -> Iterator[str]:
    """Yield what is wrong with arguments for this build; nothing when it is not known."""
    if not build.options:
        return
    rest = deque(args)
    while rest:
        argument = rest.popleft()
        option = build.option(argument)
        if option is None:
            yield _explain_unknown(build, argument)
            # What follows may be its values.
            while rest and not rest[0].startswith("-"):
                rest.popleft()
            continue
        values: list[str] = []
        while rest and len(values) < option.value_count and build.option(rest[0]) is None:
            values.append(rest.popleft())
        if len(values) < option.value_count:
            found = f"the option {rest[0]}" if rest else "nothing"
            yield f"{argument} expects a value ({option.value_hint}), found {found} after it"
        elif option.allowed and values[0] not in option.allowed:
            yield wrong_value(build, argument, values[0], option.allowed)


def wrong_value(build: ServerBuild, argument: str, value: str, allowed: Sequence[str]) -> str:
    """Say that a build does not take this value, and which it takes."""
    return (
        f"{build.name} does not know {_shown(value)} for {argument}"
        f"{_did_you_mean(value, allowed)} (it knows {', '.join(allowed)})"
    )


def unknown_option(build: ServerBuild, names: Sequence[str]) -> str:
    """Say that a build has no option by any of these names, in its own words if it has any."""
    for name in names:
        option = build.options.get(plain_name(name))
        if option is not None:
            advice = f": {option.replacement}" if option.replacement else ""
            return f"{build.name} has {name} no more{advice}"
    return f"{build.name} does not know {_shown(names[0])}"


def _explain_unknown(build: ServerBuild, argument: str) -> str:
    for separator in (" ", "="):
        name, found, _ = argument.partition(separator)
        if found and build.option(name) is not None:
            return f'expected {name} and its value as two items, found "{_shown(argument)}" as one'
    if not argument.startswith("-"):
        return f'expected an option, found "{_shown(argument)}"'
    message = unknown_option(build, (argument,))
    if plain_name(argument) in build.options:
        return message
    return message + _did_you_mean(plain_name(argument), build.options)


def _did_you_mean(word: str, known: Sequence[str] | Mapping[str, object]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f'; did you mean "{near[0]}"?' if near else ""


def _shown(text: str) -> str:
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."
