"""What the commands share: how one is declared, arguments of several, numbers with limits."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from flows.console.progress import quietly

Function = Callable[..., int | None]
"""What a command does with its arguments; returns an exit code, None for 0."""
PATH = click.Path(path_type=Path)
FOLDER = click.Path(path_type=Path, file_okay=False)
RUN = "a run's folder, or the config that made it"
RUN_AT = f"{RUN}; RUN@3 is the run as of round 3"


class CommandGroup(click.Group):
    """Commands in the order they were given."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


class Command(click.Command):
    """A command; whatever is wrong with its arguments is told as a mistake of this one."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            error.ctx = error.ctx or ctx
            raise


class Choice(click.Choice[str]):
    """One of several names; a wrong one is told the nearest right one."""

    def get_invalid_choice_message(self, value: Any, ctx: click.Context | None) -> str:
        near = difflib.get_close_matches(str(value), self.choices, n=1)
        if near:
            return f"there is no {value!r}; did you mean {near[0]!r}?"
        return super().get_invalid_choice_message(value, ctx)


def number(kind: type[float], holds: Callable[[float], bool], what: str) -> Callable[[str], float]:
    """Make a type of argument: `what` says which numbers are taken, `holds` knows them."""

    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not holds(value):  # nan holds nowhere
            raise click.BadParameter(f"{text!r} is not {what}")
        return value

    return read


at_least_one = number(int, lambda count: count >= 1, "a whole number above 0")
port = number(int, lambda at: 1 <= at <= 65535, "a port, from 1 to 65535")
seconds = number(float, lambda s: 0.0 <= s < math.inf, "a number of seconds, 0 or more")
share = number(float, lambda part: 0.0 <= part <= 1.0, "a share from 0 to 1")


def _be_quiet(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    ctx.with_resource(quietly(wanted))


quiet = click.option(
    "-q", "--quiet", is_flag=True, expose_value=False, callback=_be_quiet,
    help="no progress and no tables on the way: the result, and errors",
)  # fmt: skip
run = click.argument("run", type=click.Path(), metavar="RUN", help=RUN)
run_at = click.argument("run", type=click.Path(), metavar="RUN", help=RUN_AT)
config = click.argument(
    "config", type=click.Path(), metavar="CONFIG",
    help="a TOML file, such as configs/tiny.toml, or the folder of the run it made",
)  # fmt: skip
overrides = click.option(
    "--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE",
    help="override a value of the config; may be repeated; a path is relative to this folder",
)  # fmt: skip


def command(name: str, about: str) -> Callable[[Function], click.Command]:
    """Make a function the command `name`; decorators below this one declare what it takes."""

    def made(function: Function) -> click.Command:
        declare = click.command(name, Command, help=sentence(about), short_help=about)
        return declare(quiet(function))

    return made


def group(name: str, about: str, *commands: click.Command) -> click.Group:
    """Make a command that has commands."""
    return quiet(
        CommandGroup(
            name, commands=commands, help=sentence(about), short_help=about, no_args_is_help=False
        )
    )


def sentence(about: str) -> str:
    return f"{about[0].upper()}{about[1:]}."
