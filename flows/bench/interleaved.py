"""Timing on a shared, noisy machine: alternatives take turns, and medians are compared."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    name: str
    value: float
    unit: str
    target: str
    """What the project promises, in words; empty where it promises nothing."""
    met: bool | None
    details: dict[str, Any]


def medians(work: Mapping[str, Callable[[], object]], repetitions: int) -> dict[str, float]:
    """Median wall-clock seconds of each; one unmeasured turn first, then all take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(repetitions + 1):
        for name, call in work.items():
            began = time.perf_counter()
            call()
            if turn:
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def at_least(name: str, value: float, bound: float, unit: str = "x", **details: Any) -> Row:
    return Row(name, value, unit, f"at least {bound:g}{unit}", value >= bound, details)


def at_most(name: str, value: float, bound: float, unit: str = "x", **details: Any) -> Row:
    return Row(name, value, unit, f"at most {bound:g}{unit}", value <= bound, details)
