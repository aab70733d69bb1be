"""Workers on a real Ray: the rows of one process, and those of two, also when one is killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from opd_core.cluster import losses
from opd_core.cluster.connection import connected, staying_connected
from opd_core.config.load import Config, load_config
from opd_core.engines import idle_time
from opd_core.model import peak_memory, token_count
from opd_core.prompts.batches import reading_through
from opd_core.rollout.answers import evaluate, predict, sample_rollouts
from opd_core.rollout.by_example import by_example
from opd_core.scoring.trees import score_rollouts
from opd_core.types import Batch, GroundingExample, Policy, Rollout, TeacherScore
from tests.opd_core.engines.vllm_fixtures import read_examples

EXAMPLES = 12
STUDENT_HASH, TEACHER_HASH = "student", "teacher"


@pytest.fixture(scope="module", autouse=True)
def one_ray() -> Iterator[None]:
    with staying_connected():
        yield


@pytest.fixture
def config(tiny_config: Callable[..., Path]) -> Config:
    return load_config(tiny_config({"rollout.prompts_per_batch": 2}))


@pytest.fixture
def clustered(config: Config) -> Config:
    return load_config_like(config)


def load_config_like(config: Config) -> Config:
    from opd_core.config.sections import ClusterSection

    return config.model_copy(update={"cluster": ClusterSection(workers=2)})


def student(config: Config) -> Policy:
    return Policy(0, config.student.path, STUDENT_HASH)


def rows(batches: Iterator[Batch[Any]]) -> list[Any]:
    """Without times, by their ids."""
    every = [replace(r, seconds=0.0) for batch in batches for r in batch.records]
    return sorted(every, key=lambda r: getattr(r, "rollout_id", None) or r.example_id)


def sampled(config: Config, examples: Sequence[GroundingExample]) -> list[Rollout]:
    return rows(sample_rollouts(config, student(config), examples, set()))


def test_two_workers_give_the_rows_of_one_process(config: Config, clustered: Config) -> None:
    examples = read_examples(config, EXAMPLES)
    here = sampled(config, examples)
    tokens, engine = token_count.total(), idle_time.total()
    peak_memory.begin()
    there = sampled(clustered, examples)
    print(token_count.total()-tokens, idle_time.total().working-engine.working, peak_memory.peak())
    assert there == here
