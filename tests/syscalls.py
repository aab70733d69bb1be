"""A process for which the kernel refuses some calls: what a file system without them answers.

A seccomp filter, which needs no rights. It holds for all that the process does afterwards, also in
Lance's own code, and cannot be taken back.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import subprocess
import sys

from tests.tiny_config import ROOT

CAN_REFUSE = sys.platform == "linux" and platform.machine() == "x86_64"
NUMBERS = {
    "flock": (73,),
    "link": (86, 265),
    "rename": (82, 264, 316),
    "fsync": (74, 75),
    "pwrite": (18,),
}
"""Of x86-64, with each call's relatives (`linkat`, `renameat`, ...)."""
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06
_NO_NEW_PRIVILEGES, _SECCOMP, _FILTER = 38, 22, 2


def refuse(call: str, errno: int) -> None:
    """From now on the kernel answers `errno` to this process where it makes the call."""
    numbers = NUMBERS[call]
    lines = [struct.pack("HBBI", _LOAD, 0, 0, 0)]
    for at, number in enumerate(numbers):
        lines.append(struct.pack("HBBI", _EQUAL, len(numbers) - at, 0, number))
    lines.append(struct.pack("HBBI", _RETURN, 0, 0, _ALLOW))
    lines.append(struct.pack("HBBI", _RETURN, 0, 0, _ERRNO | errno))
    code = ctypes.create_string_buffer(b"".join(lines))
    program = ctypes.create_string_buffer(
        struct.pack("HxxxxxxQ", len(lines), ctypes.addressof(code))
    )
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in ((_NO_NEW_PRIVILEGES, 1, 0), (_SECCOMP, _FILTER, ctypes.byref(program))):
        if libc.prctl(*arguments, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), f"no filter for {call}")


def without(call: str, errno: int, code: str, *arguments: object) -> str:
    """What `code` prints, and the last line of its complaint, in such a process of its own."""
    first = f"from tests.syscalls import refuse\nrefuse({call!r}, {errno})\n"
    done = subprocess.run(
        [sys.executable, "-c", first + code, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    return done.stdout + "".join(done.stderr.splitlines()[-1:])
