"""Batches and their answers: in order, the next one asked in time, and what goes wrong in place."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import cast

import pytest

from opd_core.engines import idle_time
from opd_core.engines.base import OpenedEngine, WorksElsewhere
from opd_core.engines.in_turn import in_turn
from opd_core.prompts.batches import EncodedBatch
from opd_core.prompts.in_background import InBackground
from opd_core.types import VideoOPDError

Asked = Callable[[], int]


class Elsewhere:
    """Of another process, as far as `in_turn` looks."""

    name = "elsewhere"

    @property
    def version(self) -> str:
        raise AssertionError("nobody may wait for it to be open")

    def begin_sampling(self, *_: object) -> None: ...
    def begin_scoring(self, *_: object) -> None: ...


HERE = cast(OpenedEngine, object())
THERE = cast(OpenedEngine, Elsewhere())


def run(engine: OpenedEngine, broken: int | None = None) -> list[str]:
    """What happened, in order, with three batches, of which one may be broken."""
    happened: list[str] = []

    def batches() -> Iterator[EncodedBatch]:
        for number in range(3):
            if number == broken:
                raise VideoOPDError("no videos any more; mount them")
            happened.append(f"encode {number}")
            yield cast(EncodedBatch, number)

    def ask(encoded: EncodedBatch) -> Asked:
        happened.append(f"ask {encoded}")
        return lambda: cast(int, encoded)

    def go_on() -> None:
        for turn in in_turn(engine, batches(), ask):
            happened.append(f"answer {turn.answers()}")

    if broken is None:
        go_on()
    else:
        with pytest.raises(VideoOPDError, match="mount them"):
            go_on()
    return happened


def test_an_engine_elsewhere_has_the_next_batch_before_the_last_is_waited_for() -> None:
    assert isinstance(THERE, WorksElsewhere) and not isinstance(HERE, WorksElsewhere)
    assert run(THERE) == ["encode 0", "ask 0", "encode 1", "ask 1", "answer 0", "encode 2",
                          "ask 2", "answer 1", "answer 2"]  # fmt: skip


def test_an_engine_here_is_asked_when_it_is_its_turn() -> None:
    assert run(HERE) == [f"{what} {n}" for n in range(3) for what in ("encode", "ask", "answer")]


@pytest.mark.parametrize("engine", [HERE, THERE], ids=["here", "elsewhere"])
@pytest.mark.parametrize("broken", [0, 1, 2])
def test_what_goes_wrong_comes_after_the_answers_to_what_was_before_it(
    engine: OpenedEngine, broken: int
) -> None:
    happened = run(engine, broken)
    assert [h for h in happened if h.startswith("answer")] == [f"answer {n}" for n in range(broken)]


def test_the_time_without_prompts_is_counted_of_an_engine_here() -> None:
    def batches() -> Iterator[EncodedBatch]:
        for number in range(2):
            time.sleep(0.1)
            yield cast(EncodedBatch, number)

    before = idle_time.total()
    for _ in in_turn(HERE, batches(), lambda _: lambda: None):
        time.sleep(0.2)  # at work, or with what it answered
    assert 0.2 <= idle_time.total().idle - before.idle < 0.35
    assert idle_time.EngineTime(3.0, 1.0).idle_share == 0.25
    assert idle_time.EngineTime().idle_share is None


def test_what_is_made_in_the_background_is_given_or_its_error() -> None:
    assert InBackground(lambda _: 3).result() == 3

    def fail(_: threading.Event) -> int:
        raise MemoryError("of it")

    with pytest.raises(MemoryError, match="of it"):
        InBackground(fail).result()


def test_who_gives_up_leaves_no_thread() -> None:
    before = threading.active_count()
    making = InBackground(lambda stop: stop.wait(30.0))
    assert threading.active_count() == before + 1
    began = time.monotonic()
    making.give_up()
    assert time.monotonic() - began < 1.0 and threading.active_count() == before
