"""The command line: `videoopd ...`.

Parsing imports nothing heavy, so `--help` is instant; each command (`flows/commands/`) imports what
it needs. An error that a user can cause ends with one sentence and code 2; any other keeps its
traceback.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import click

from flows.commands import about, bringing, looking, measuring, planning, proving, rounds, serving
from flows.commands.arguments import group
from opd_core.types import VideoOPDError

program = about.version(
    group(
        "videoopd",
        "on-policy distillation for temporal video grounding",
        bringing.init, bringing.import_annotations, bringing.tinyworld,
        planning.plan, rounds.run, rounds.stage, rounds.demo,
        looking.status, looking.query, looking.show, looking.view, looking.report, looking.diff,
        looking.export, looking.track,
        proving.audit, proving.rescore, proving.tag, proving.migrate,
        measuring.evaluate, measuring.study, measuring.bench,
        serving.up, serving.down,
        about.completion,
    )
)  # fmt: skip
program.epilog = "RUN is the folder of a run, or a config whose run.path is that folder."
program.context_settings = {
    "help_option_names": ["-h", "--help"], "max_content_width": 100, "show_default": True,
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    if asked := os.environ.get(about.COMPLETE):
        return about.complete(program, asked)
    words = sys.argv[1:] if arguments is None else list(arguments)
    with _interrupts() as pressed, _warnings_as_sentences():
        try:
            with program.make_context("videoopd", words) as context:
                code = program.invoke(context)
            sys.stdout.flush()
            return code or 0
        except click.exceptions.Exit as end:  # --help, --version
            return end.exit_code
        except click.UsageError as error:
            print(f"videoopd: {_refusal(error)}", file=sys.stderr)
            return 2
        except VideoOPDError as error:
            print(f"videoopd: {error}", file=sys.stderr)
            return 2
        except BrokenPipeError:
            # The reader (`| head`) has seen enough. Keep Python from flushing into it at exit.
            _forget_output()
            return 0
        except OSError as error:
            told = _told(error)
            if told is None:
                raise
            print(f"videoopd: {told}", file=sys.stderr)
            if error.filename is None:
                _forget_output()
            return 2
        except BaseException as error:
            # A KeyboardInterrupt that lands in a callback of polars comes out as a panic.
            if not pressed and not isinstance(error, KeyboardInterrupt):
                raise
            print("\nvideoopd: stopped; continue with the same command", file=sys.stderr)
            return 130


_ROOMS = tuple(
    f"{Path(__file__).parent.parent / room}{os.sep}" for room in ("flows", "opd_core", "storage")
)


@contextmanager
def _warnings_as_sentences() -> Iterator[None]:
    """Show our own warnings as errors are told; those of libraries keep their place in the code."""
    others = warnings.formatwarning

    def told(
        message: Warning | str, category: type[Warning], filename: str, lineno: int,
        line: str | None = None,
    ) -> str:  # fmt: skip
        if filename.startswith(_ROOMS):
            return f"videoopd: {message}\n"
        return others(message, category, filename, lineno, line)

    warnings.formatwarning = told
    try:
        yield
    finally:
        warnings.formatwarning = others


def _refusal(error: click.UsageError) -> str:
    """Say what click has against the arguments, as one sentence with what to do."""
    said = " ".join(error.format_message().split()).rstrip(".")
    parts = re.sub(r"\. (Did|Choose)", lambda second: f"; {second[1].lower()}", said)
    of = error.ctx.command_path if error.ctx else "videoopd"
    end = "" if parts.endswith("?") else ";"
    return f"{parts[:1].lower()}{parts[1:]}{end} `{of} --help` says what it takes"


_OF_THE_USERS_DISK = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR,
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO,
}  # fmt: skip
"""What no program can mend; a file that is missing may be a mistake of this one."""


def _told(error: OSError) -> str | None:
    """Say what is wrong with a file that nobody has said more about; None for any other error."""
    if error.errno not in _OF_THE_USERS_DISK:
        return None
    if error.filename is None:  # what is printed may go into a file on a full disk
        return f"the output cannot be written ({error.strerror}); free some space, or choose a file"
    return f"{error.filename} cannot be used ({error.strerror}); give another path, or mend that"


def _forget_output() -> None:
    """Drop what is still in Python's buffer: it must not raise again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Note in the list each Ctrl-C, which raises `KeyboardInterrupt` as ever."""
    pressed: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        pressed.append(number)
        signal.default_int_handler(number, frame)

    mine = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if mine:
        signal.signal(signal.SIGINT, note)
    try:
        yield pressed
    finally:
        if mine:
            signal.signal(signal.SIGINT, signal.default_int_handler)


if __name__ == "__main__":
    sys.exit(main())
