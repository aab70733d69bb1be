"""What the commands' parsers share: how a command is added, its checked numbers, its one sentence.

What argparse itself refuses ends like every other mistake: one sentence with what to do, code 2.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Callable
from typing import Any, NoReturn

Command = Callable[[argparse.Namespace], int | None]
"""Returns an exit code, None for 0."""
Commands = Any
"""What `add_subparsers` returned; argparse has no public name for it."""

RUN = "a run's folder, or the config that made it"
RUN_AT = f"{RUN}; RUN@3 is the run as of round 3"
CONFIG = "a TOML file, such as configs/tiny.toml, or the folder of the run it made"


class Parser(argparse.ArgumentParser):
    """Refuses in one sentence."""

    def error(self, message: str) -> NoReturn:
        text = f"{message[:1].lower()}{message[1:]}".rstrip(".").replace("\n", " ")
        end = "" if text.endswith("?") else ";"
        print(f"videoopd: {text}{end} `{self.prog} --help` says what it takes", file=sys.stderr)
        raise SystemExit(2)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """As argparse's own, with the nearest right name."""
        if action.choices is None or value in action.choices:
            return
        known = [str(choice) for choice in action.choices]
        near = difflib.get_close_matches(str(value), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"give one of: {', '.join(known)}"
        name = action.option_strings[0] if action.option_strings else action.metavar or action.dest
        raise argparse.ArgumentError(None, f"there is no {name} {value!r}; {hint}")


def add(commands: Commands, name: str, command: Command, about: str) -> argparse.ArgumentParser:
    """A command's parser; `command` gets what it has parsed."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=about, description=about[0].upper() + about[1:] + "."
    )
    parser.set_defaults(command=command)
    add_quiet(parser, default=argparse.SUPPRESS)
    return parser


def add_quiet(parser: argparse.ArgumentParser, default: Any = False) -> None:
    parser.add_argument(
        "-q", "--quiet", action="store_true", default=default,
        help="no progress and no tables on the way: the result, and errors",
    )  # fmt: skip


def add_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="SECTION.KEY=VALUE",
        help="override a value of the config; may be repeated; a path is relative to this folder",
    )  # fmt: skip


def at_least_one(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return number


def seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0.0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds, 0 or more")
    return number


def share(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0.0 <= number <= 1.0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share from 0 to 1")
    return number
