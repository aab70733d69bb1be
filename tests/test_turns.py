"""Which of the long tests `make test` runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.turns import TURNS, has_its_turn, source_hash, unknown_cases


@dataclass(frozen=True)
class Item:
    nodeid: str
    always: tuple[str, ...] | None = ()
    """None: it is not marked."""

    def get_closest_marker(self, name: str) -> pytest.Mark | None:
        if name != "in_turn" or self.always is None:
            return None
        return pytest.mark.in_turn(always=self.always).mark


def turns(item: Item) -> list[bool]:
    return [has_its_turn(item, f"source {n}") for n in range(1000)]


def test_each_has_one_turn_in_five() -> None:
    for case in range(20):
        ran = turns(Item(f"tests/test_a.py::test_b[{case}]"))
        assert 1000 / TURNS - 60 < sum(ran) < 1000 / TURNS + 60  # 4.7 standard deviations
    assert turns(Item("tests/test_a.py::test_b")) != turns(Item("tests/test_a.py::test_c"))


def test_what_is_not_marked_or_is_named_is_run_every_time() -> None:
    assert all(turns(Item("tests/test_a.py::test_b", None)))
    assert all(turns(Item("tests/test_a.py::test_b[full]", ("full",))))
    assert not all(turns(Item("tests/test_a.py::test_b[lora]", ("full",))))


def test_a_change_of_any_file_gives_other_turns(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_a.py").write_text("a = 1\n")
    before = source_hash(tmp_path)
    assert before == source_hash(tmp_path)
    (tmp_path / "tests" / "test_a.py").write_text("a = 2\n")
    changed = source_hash(tmp_path)
    (tmp_path / "tests" / "test_a.py").rename(tmp_path / "tests" / "test_b.py")
    assert len({before, changed, source_hash(tmp_path)}) == 3


def test_a_case_that_is_to_run_every_time_is_there(request: pytest.FixtureRequest) -> None:
    assert unknown_cases(request.session.items) == []
    assert unknown_cases([Item("test_b[lora]", ("full",))]) == ["test_b[full]"]
