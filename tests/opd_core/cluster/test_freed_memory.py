"""Pages of memory that a process is given anew for what it has just freed."""

from __future__ import annotations

import subprocess
import sys

import pytest

BLOCKS = """
import resource
from opd_core.cluster.freed_memory import keep_freed_memory

def turn():
    blocks = [b"x" * (2 << 20) for _ in range(8)]  # 16 MiB of 2 each, and all are freed

if {keeps}:
    keep_freed_memory()
turn()
turn()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    turn()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def pages(keeps: bool) -> int:
    command = [sys.executable, "-c", BLOCKS.format(keeps=keeps)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's rule")
def test_what_was_freed_needs_no_new_pages() -> None:
    given_again = 20 * (16 << 20) // 4096
    assert pages(keeps=False) > given_again / 2, "the rule that this is against"
    assert pages(keeps=True) < given_again / 20
