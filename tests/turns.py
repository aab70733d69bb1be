"""Long tests that take turns: `make test` runs a fifth of them, `make test-all` all.

A test marked `in_turn` is a further case of what a quicker one keeps: another point at which a
round is killed, another optimiser, a second engine. Which fifth it is follows from the source, so
that a run can be had again, and other changes have other turns: what is left out every time rots.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import pytest

from tests.tiny_config import ROOT

TURNS = 5
PACKAGES = ("flows", "opd_core", "storage", "tests")


class Marked(Protocol):
    """Of a pytest item what is asked here."""

    @property
    def nodeid(self) -> str: ...
    def get_closest_marker(self, name: str) -> pytest.Mark | None: ...


def source_hash(root: Path = ROOT) -> str:
    """Of all Python files, by name and content."""
    files = sorted(path for package in PACKAGES for path in (root / package).rglob("*.py"))
    total = hashlib.sha256()
    for path in files:
        total.update(str(path.relative_to(root)).encode())
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def has_its_turn(item: Marked, source: str) -> bool:
    """Whether `make test` of this source runs it. A case that the mark names in `always` is run
    every time."""
    mark = item.get_closest_marker("in_turn")
    if mark is None or case_of(item.nodeid) in mark.kwargs.get("always", ()):
        return True
    number = hashlib.sha256(f"{source} {item.nodeid}".encode()).digest()
    return int.from_bytes(number) % TURNS == 0


def case_of(nodeid: str) -> str:
    """The id of a test's parameters; empty where it has none."""
    return nodeid.partition("[")[2].removesuffix("]")


def unknown_cases(items: Iterable[Marked]) -> list[str]:
    """What marks name in `always` and no case is called."""
    cases: dict[str, set[str]] = {}
    named: dict[str, set[str]] = {}
    for item in items:
        test = item.nodeid.partition("[")[0]
        cases.setdefault(test, set()).add(case_of(item.nodeid))
        if mark := item.get_closest_marker("in_turn"):
            named.setdefault(test, set()).update(mark.kwargs.get("always", ()))
    return sorted(f"{test}[{case}]" for test, ids in named.items() for case in ids - cases[test])
