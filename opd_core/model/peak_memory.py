"""The most memory that this process has held since a moment.

Of an accelerator what torch has allocated there, where this process uses one; else what of the
process was resident. Other processes (an engine's, decoders) are not counted, but for workers,
which report theirs: where there are any, the one that has held most.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from types import ModuleType
from typing import Literal

_RESET = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")

Kind = Literal["cuda", "process"]
_elsewhere: tuple[int, Kind] | None = None


def begin() -> None:
    """From now on. Where the system cannot forget its own record, that goes on."""
    global _elsewhere
    _elsewhere = None
    if (cuda := _cuda()) is not None:
        cuda.reset_peak_memory_stats()
    try:
        _RESET.write_text("5")
    except OSError:
        pass


def held_elsewhere(peak: int, of: Kind) -> None:
    """A worker has held so many bytes."""
    global _elsewhere
    _elsewhere = max(_elsewhere or (0, of), (peak, of))


def peak() -> tuple[int, Kind]:
    """Bytes since `begin`, and of what."""
    own = of_this_process()
    if _elsewhere is None:
        return own
    return max(own, _elsewhere) if own[1] == _elsewhere[1] else _elsewhere


def of_this_process() -> tuple[int, Kind]:
    """As `peak`, of no worker."""
    if (cuda := _cuda()) is not None:
        return int(cuda.max_memory_allocated()), "cuda"
    if _STATUS.exists():
        lines = _STATUS.read_text().splitlines()
        (kilobytes,) = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
        return int(kilobytes) * 1024, "process"
    in_kilobytes = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * in_kilobytes, "process"


def _cuda() -> ModuleType | None:
    """torch's, once it is in use; a stage that computes nothing does not import it."""
    cuda = sys.modules.get("torch.cuda")
    return cuda if cuda is not None and cuda.is_available() and cuda.is_initialized() else None
