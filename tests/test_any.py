"""`Any` stands where a library gives no types, and nowhere else: counted a room, and why.

A bound is what the room has today; it may fall, and whoever raises it says here what for.
"""

from __future__ import annotations

import ast
import functools
from collections import Counter

import pytest

from tests.tiny_config import ROOT

PREFECT = "flows and tasks of Prefect, and click, which calls back with whatever it was given"
READ = "what TOML, JSON and CSV files of people hold, before it is checked"
MODELS = "models, processors and tokenizers of transformers, peft and vLLM"
ROWS = "rows as polars gives them, of columns of several types"
LANCE = "Lance's datasets, and rows as they come out of them"

BORDERS = {
    "flows": (4, PREFECT),
    "flows/audit": (8, PREFECT),
    "flows/bench": (40, READ),
    "flows/commands": (18, PREFECT),
    "flows/console": (4, PREFECT),
    "flows/evaluation": (2, READ),
    "flows/numbers": (13, ROWS),
    "flows/prefect_page": (6, PREFECT),
    "flows/server": (1, PREFECT),
    "flows/stage": (7, PREFECT),
    "flows/study": (18, READ),
    "flows/view": (8, "what templates are given, and rows"),
    "flows/tracking": (8, "rows of frames, and the records of trackers, which have no types"),
    "opd_core": (
        9,
        "what another package put at an entry point, and messages to a child process",
    ),
    "opd_core/annotations": (54, READ),
    "opd_core/cluster": (6, "Ray's actors and references, and what comes back through them"),
    "opd_core/config": (14, READ),
    "opd_core/engines": (50, MODELS),
    "opd_core/hub": (4, "huggingface_hub's progress bars and its HTTP client's errors"),
    "opd_core/model": (44, MODELS),
    "opd_core/prompts": (3, MODELS),
    "opd_core/spans": (2, "columns that a protocol names itself"),
    "opd_core/templates": (1, READ),
    "opd_core/tinyworld": (21, MODELS),
    "opd_core/update": (22, MODELS),
    "opd_core/video": (12, "av's streams and packets, and the messages of the decoding process"),
    "storage": (5, LANCE),
    "storage/asking": (2, LANCE),
    "storage/audit": (4, LANCE),
    "storage/runs": (15, "Lance's datasets, and what DuckDB asks of one"),
    "storage/tables": (3, LANCE),
    "tests": (448, "settings and rows of all kinds, models, and what stands in for a part"),
}


@functools.cache
def counted() -> Counter[str]:
    """room -> how often `Any` stands in it; the tests are one room."""
    counts: Counter[str] = Counter()
    for package in ("flows", "opd_core", "storage", "tests"):
        for path in (ROOT / package).rglob("*.py"):
            inside = path.relative_to(ROOT).parts[:-1]
            room = "tests" if package == "tests" else "/".join(inside[:2])
            nodes = ast.walk(ast.parse(path.read_text()))
            counts[room] += sum(isinstance(n, ast.Name) and n.id == "Any" for n in nodes)
    return counts


@pytest.mark.parametrize("room", BORDERS)
def test_any_stands_at_the_borders_only(room: str) -> None:
    most, reason = BORDERS[room]
    assert counted()[room] <= most, f"`Any` in {room} was for: {reason}"


def test_any_stands_in_no_other_room() -> None:
    assert {room for room, count in counted().items() if count} <= {*BORDERS}


def test_nothing_is_left_untyped_by_a_comment() -> None:
    """A `type: ignore` names the error that it is for."""
    bare = [
        f"{path.relative_to(ROOT)}:{number}"
        for package in ("flows", "opd_core", "storage", "tests")
        for path in (ROOT / package).rglob("*.py")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if line.rstrip().endswith("# type: " + "ignore")
    ]
    assert bare == []
