"""Damaged tables are one sentence that names the table; other errors stay what they are."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from opd_core.types import VideoOPDError
from storage.runs.run import Run
from storage.tables import damage
from tests.storage.storage_factories import rollout


@pytest.fixture
def filled(run: Run) -> Run:
    run.append("rollouts", [rollout(i, version=0) for i in range(4)])
    return run


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def data(table: Path) -> Path:
    return next((table / "data").iterdir())


def newest(table: Path) -> Path:
    return min((table / "_versions").glob("*.manifest"))


def scrambled(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[:-100:7] = bytes(byte ^ 0xFF for byte in content[:-100:7])
    file.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("harm", "named"),
    [
        (lambda table: cut(data(table)), "data/"),
        (lambda table: data(table).write_bytes(b""), "data/"),
        (lambda table: data(table).unlink(), "Not found"),
        (lambda table: scrambled(data(table)), "table rollouts in "),
        (lambda table: cut(newest(table)), "_versions/"),
        (lambda table: newest(table).write_bytes(b""), "_versions/"),
        (lambda table: shutil.rmtree(table / "_versions"), "is missing"),
    ],
)
def test_a_damaged_table_is_one_sentence_with_its_name(
    filled: Run, harm: Callable[[Path], object], named: str
) -> None:
    harm(filled.path / "tables" / "rollouts.lance")
    with pytest.raises(VideoOPDError) as caught, damage.told([filled.path]):
        Run.open(filled.path).rollouts().collect()
    message = str(caught.value)
    assert "rollouts" in message and named in message, message
    assert message.endswith("; restore it from a copy of the run") and "\n" not in message


def test_other_errors_stay_what_they_are(filled: Run) -> None:
    with pytest.raises(ZeroDivisionError), damage.told([filled.path]):
        1 / 0  # noqa: B018
    with pytest.raises(KeyboardInterrupt), damage.told([filled.path]):
        raise KeyboardInterrupt("LanceError")
    assert damage.first_damage(filled.path / "tables") is None
