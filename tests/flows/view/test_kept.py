"""What is kept of a run: computed once for each source, also by threads that ask at once."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from flows.view.kept import Kept


def test_threads_that_ask_at_once_compute_once() -> None:
    kept, computed = Kept(), []

    def compute() -> int:
        time.sleep(0.05)
        computed.append(1)
        return len(computed)

    with ThreadPoolExecutor(8) as threads:
        asked = [threads.submit(kept, "rounds", 1, compute) for _ in range(8)]
    assert [one.result() for one in asked] == [1] * 8
    assert kept("rounds", 2, compute) == 2


def test_what_failed_is_computed_again() -> None:
    kept = Kept()

    def fails() -> int:
        raise ValueError

    for _ in range(2):
        try:
            kept("rounds", 1, fails)
        except ValueError:
            continue
        raise AssertionError
    assert kept("rounds", 1, lambda: 3) == 3
