"""How long an engine has nothing to answer: prompts prepared after the last batch, or meanwhile.

    videoopd bench vllm

Both ways take turns on one open engine, each time with examples of their own, because a prompt that
vLLM has seen costs it less. Videos are decoded already: what is left is the processors' work.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

from flows.bench.interleaved import Row
from flows.bench.rounds import drawn_examples
from opd_core.config.load import load_config
from opd_core.engines import idle_time
from opd_core.engines.base import OpenedEngine, Request, SamplingParams, WorksElsewhere
from opd_core.engines.choice import opened_engine
from opd_core.engines.in_turn import in_turn
from opd_core.engines.whole_answers import sampled, sampling
from opd_core.prompts.batches import EncodedBatch, ExampleEncoder, cut_at_videos
from opd_core.types import GroundingExample

BATCHES, PROMPTS, ROLLOUTS = 6, 16, 4
ENGINES = ("hf", "vllm")
Batches = Sequence[Sequence[GroundingExample]]


class Measured(NamedTuple):
    """One turn."""

    seconds: float
    idle_share: float


def engine_idle_rows(
    config_file: str, repetitions: int, engines: Sequence[str] = ENGINES
) -> Iterator[Row]:
    """A row for each engine: its idle share of the way that stages take."""
    for name in engines:
        measured = _measured(config_file, name, repetitions)
        median = {
            way: {field: statistics.median(getattr(m, field) for m in turns)
                  for field in Measured._fields}
            for way, turns in measured.items()
        }  # fmt: skip
        yield Row(
            f"{name}, sampling: share of the time in which it has no prompts",
            100 * median["meanwhile"]["idle_share"],
            "%",
            "measured",
            None,
            {"prepared after the last batch": median["after"],
             "prepared meanwhile": median["meanwhile"],
             "batches": BATCHES, "prompts a batch": PROMPTS, "rollouts a prompt": ROLLOUTS},
        )  # fmt: skip


def _measured(config_file: str, name: str, repetitions: int) -> dict[str, list[Measured]]:
    config = load_config(config_file, [f"rollout.engine='{name}'"])
    encoder = ExampleEncoder(config, config.student.path)
    examples = drawn_examples(config, 2 * (repetitions + 1) * BATCHES * PROMPTS)
    plan = list(cut_at_videos(examples, PROMPTS))
    for _ in encoder.encode_batches(plan, "bench", 0):
        pass  # decoded
    params = SamplingParams(config.rollout.max_new_tokens)
    turns: dict[str, list[Measured]] = {"after": [], "meanwhile": []}
    with opened_engine(config, name, config.student.path, "float32", encoder) as engine:
        for turn in range(repetitions + 1):
            for place, (way, run) in enumerate(
                (("after", _after_the_last), ("meanwhile", _meanwhile))
            ):
                start = (2 * turn + place) * BATCHES
                one = _timed(partial(run, engine, encoder, plan[start : start + BATCHES], params))
                if turn:  # the first is to warm up
                    turns[way].append(one)
    return turns


def _timed(run: Callable[[], None]) -> Measured:
    before, began = idle_time.total(), time.perf_counter()
    run()
    seconds, after = time.perf_counter() - began, idle_time.total()
    return Measured(seconds, (after.idle - before.idle) / seconds)


def _meanwhile(
    engine: OpenedEngine, encoder: ExampleEncoder, plan: Batches, params: SamplingParams
) -> None:
    """As the stages do."""
    ahead = not isinstance(engine, WorksElsewhere)
    batches = encoder.encode_batches(plan, "bench", 0, ahead=ahead)
    for turn in in_turn(engine, batches, lambda e: sampling(engine, _requests(e), params)):
        turn.answers()


def _after_the_last(
    engine: OpenedEngine, encoder: ExampleEncoder, plan: Batches, params: SamplingParams
) -> None:
    began = time.perf_counter()
    for encoded in encoder.encode_batches(plan, "bench", 0, ahead=False):
        if not isinstance(engine, WorksElsewhere):  # which counts by itself
            idle_time.passed(idle=time.perf_counter() - began)
        sampled(engine, _requests(encoded), params)
        began = time.perf_counter()


def _requests(encoded: EncodedBatch) -> list[list[Request]]:
    return [
        [Request(i.example.example_id, i.prompt, tuple(range(ROLLOUTS))) for i in video]
        for video in encoded.videos
    ]
