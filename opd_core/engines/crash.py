"""Which errors are crashes of what computes, after which the same again may well work."""

from __future__ import annotations

import sys

from opd_core.child_process import ChildCrash
from opd_core.types import EngineCrashError, VideoOPDError

_NO_MEMORY = "OutOfMemoryError"
"""What torch calls a device without memory, in the last lines of a process that ended with it."""


def is_crash(error: BaseException | None) -> bool:
    """Whether a process of an engine was killed, or a device had no memory left.

    A lost worker of a cluster is replaced by the stage itself (`opd_core/cluster/dealing.py`): what
    it raises in the end has been tried three times.
    """
    torch = sys.modules.get("torch")  # whoever ran out of memory has imported it
    no_memory = torch is not None and isinstance(error, torch.OutOfMemoryError)
    return no_memory or isinstance(error, EngineCrashError)


def told(crash: ChildCrash, sentence: str) -> VideoOPDError:
    """The error that a process of an engine ended with: `sentence`, as a crash if it is one. One
    that an exception has ended would end so again."""
    no_memory = any(_NO_MEMORY in line for line in crash.last_lines)
    return (EngineCrashError if crash.by_signal or no_memory else VideoOPDError)(sentence)
