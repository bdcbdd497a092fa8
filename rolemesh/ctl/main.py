"""`rolemeshctl`: finds the verb, has its module parse the rest, and maps errors to exit codes.

Only the verb's own module is imported.
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from typing import Final

from rolemesh import __version__
from rolemesh.ctl import output
from rolemesh.ctl.outcomes import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, CtlError
from rolemesh.ctl.verbs import HIDDEN, VERBS, load_verb

PROGRAM: Final = "rolemeshctl"

_WITH_VALUE: Final = frozenset({"--url", "--key-file", "--ca-file"})
"""Options that may stand before the verb and take the next word."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `rolemeshctl`; returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _run(words)
        sys.stdout.flush()
    except CtlError as error:
        output.complain(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        _give_up_stdout()  # who read it has seen enough
        return 128 + signal.SIGPIPE
    except OSError as error:
        output.complain(str(error))
        _give_up_stdout()
        return EXIT_FAILED
    return code


def _give_up_stdout() -> None:
    # Python would complain while it closes it.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(words: list[str]) -> int:
    at = _verb_index(words)
    if at is None:
        return _without_verb(words)
    name, before, after = words[at], words[:at], words[at + 1 :]
    if name not in VERBS and name not in HIDDEN:
        # Not at the top: few make mistakes.
        from difflib import get_close_matches  # noqa: PLC0415

        near = get_close_matches(name, VERBS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"`{PROGRAM} --help` lists them"
        output.complain(f"there is no verb {name!r}; {hint}")
        return EXIT_USAGE
    module = load_verb(name)
    parser = argparse.ArgumentParser(
        prog=f"{PROGRAM} {name}",
        description=module.DESCRIPTION,
        epilog="examples:\n" + "\n".join(f"  {line}" for line in module.EXAMPLES),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    parser.set_defaults(verb=name)
    return module.run(parser.parse_args([*before, *after]))


def _verb_index(words: list[str]) -> int | None:
    """Return where the verb stands: options may come before it."""
    skips = False
    for index, word in enumerate(words):
        if skips:
            skips = False
        elif word in _WITH_VALUE:
            skips = True
        elif not word.startswith("-"):
            return index
    return None


def _without_verb(words: list[str]) -> int:
    width = max(map(len, VERBS))
    listed = "\n".join(f"  {name:{width}}  {verb.summary}" for name, verb in VERBS.items())
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        usage=f"{PROGRAM} [--json] [--url URL] VERB ...",
        description="Ask RoleMesh how it does, and tell it what to do.",
        epilog=f"verbs:\n{listed}\n\n`{PROGRAM} VERB --help` explains one, with examples; "
        f"{PROGRAM}(1) explains all.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    parser.parse_args([word for word in words if word in ("-h", "--help", "--version")])
    parser.print_help(sys.stderr)
    return EXIT_USAGE


if __name__ == "__main__":
    raise SystemExit(main())
