"""The command line: `videoopd ...`.

Parsing imports nothing heavy, so `--help` is instant; each command (`flows/commands/`) imports what
it needs. An error that a user can cause ends with one sentence and code 2; any other keeps its
traceback.
"""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from flows.commands import about, bringing, looking, measuring, proving, rounds, serving
from flows.commands.arguments import Command, Parser, add_quiet
from flows.console.progress import quietly
from opd_core.types import VideoOPDError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    options = _parsed(arguments)
    command: Command = options.command
    with _interrupts() as pressed, quietly(options.quiet):
        try:
            code = command(options)
            sys.stdout.flush()
            return code or 0
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


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options. `--help` and `--version` print and end here, also where `| head` reads them."""
    try:
        try:
            return make_parser().parse_args(arguments)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        _forget_output()
        raise SystemExit(0) from None


_OF_THE_USERS_DISK = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR,
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO,
}  # fmt: skip
"""What no program can mend; a file that is missing may be a mistake of this one."""


def _told(error: OSError) -> str | None:
    """A sentence about a file that nobody has said more about; None for any other error."""
    if error.errno not in _OF_THE_USERS_DISK:
        return None
    if error.filename is None:  # what is printed may go into a file on a full disk
        return f"the output cannot be written ({error.strerror}); free some space, or choose a file"
    return f"{error.filename} cannot be used ({error.strerror}); give another path, or mend that"


def _forget_output() -> None:
    """Drop what is still in Python's buffer, which would raise again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """List that notes each Ctrl-C, which raises `KeyboardInterrupt` as ever."""
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


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="videoopd",
        description="On-policy distillation for temporal video grounding.",
        epilog="RUN is the folder of a run, or a config whose run.path is that folder.",
    )
    parser.add_argument("--version", action=about.Version)
    add_quiet(parser)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for group in (bringing, rounds, looking, proving, measuring, serving, about):
        group.register(commands)
    parser.set_defaults(parser=parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
