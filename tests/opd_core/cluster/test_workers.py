"""Workers on a real Ray: the rows of one process, and what becomes of workers that die."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from opd_core import faults
from opd_core.cluster import losses
from opd_core.cluster.connection import connected, staying_connected
from opd_core.cluster.dealing import IN_HAND
from opd_core.cluster.losses import Losses
from opd_core.cluster.work import Piece, cut
from opd_core.cluster.workers import by_workers
from opd_core.config.load import Config, load_config
from opd_core.engines import idle_time
from opd_core.model import token_count
from opd_core.rollout.answers import sample_rollouts
from opd_core.rollout.by_example import by_example
from opd_core.scoring.trees import score_rollouts
from opd_core.types import Batch, EngineCrashError, Policy, VideoOPDError
from tests.opd_core.cluster.fragile_work import Fragile, example
from tests.opd_core.engines.vllm_fixtures import read_examples
from tests.tiny_config import ROOT

pytestmark = pytest.mark.slow
WORKERS = 2


@pytest.fixture(scope="module", autouse=True)
def one_ray() -> Iterator[None]:
    """For all tests here; gone after."""
    with staying_connected():
        yield
    assert not ray_processes(), "nothing is left behind"


@pytest.fixture
def lost() -> Callable[[], Losses]:
    before = losses.total()
    return lambda: losses.total().since(before)


def ray_processes() -> list[psutil.Process]:
    """The workers of this process's Ray, each named after what it does."""
    processes = psutil.Process().children(recursive=True)
    return [p for p in processes if " ".join(p.cmdline()).startswith("ray::")]


# --- real work -------------------------------------------------------------------------------


def both(tiny_config: Callable[..., Path]) -> tuple[Config, Config]:
    """Here, and with workers."""
    file = tiny_config({"rollout.prompts_per_batch": 2})
    return load_config(file), load_config(file, [f"cluster.workers={WORKERS}"])


def rows(batches: Iterator[Batch[Any]]) -> list[Any]:
    """By their ids, without times."""
    every = [replace(r, seconds=0.0) for batch in batches for r in batch.records]
    return sorted(every, key=lambda r: r.rollout_id)


def kill_a_worker() -> None:
    idle = ("ray::IDLE", "ray::Dashboard", "ray::RuntimeEnv")
    busy = [p for p in ray_processes() if not p.cmdline()[0].startswith(idle)]
    os.kill(busy[0].pid, signal.SIGKILL)


def test_workers_have_the_priority_of_who_began_them(tiny_config: Callable[..., Path]) -> None:
    """Ray's own have the least that there is, so that any other program comes first."""
    import ray

    with connected(both(tiny_config)[1]):
        assert ray.get(ray.remote(lambda: os.nice(0)).remote()) == os.nice(0)


def test_workers_of_these_tests_are_forked(tiny_config: Callable[..., Path]) -> None:
    """Else all here passes, too, and takes minutes."""
    import ray

    def begun_by() -> list[str]:
        return list(psutil.Process(os.getppid()).cmdline())

    with connected(both(tiny_config)[1]):
        assert str(ROOT / "tests" / "ray_worker.py") in ray.get(ray.remote(begun_by).remote())


def test_rollouts_and_scores_are_those_of_one_process(
    tiny_config: Callable[..., Path], lost: Callable[[], Losses]
) -> None:
    """Bit by bit, and with the meters; a worker is killed in the middle of each."""
    alone, clustered = both(tiny_config)
    examples = read_examples(alone, 10)
    student, teacher = (Policy(0, m.path, "h") for m in (alone.student, alone.teacher))
    tokens = token_count.total()
    expected = rows(sample_rollouts(alone, student, examples, set()))
    tokens = token_count.total() - tokens
    assert sum(r.engine_mismatch is not None for r in expected) == 2, "of one example"

    def interrupted(batches: Iterator[Batch[Any]]) -> Iterator[Batch[Any]]:
        yield next(batches)
        kill_a_worker()
        yield from batches

    working, counted = idle_time.total().working, token_count.total()
    given = rows(interrupted(sample_rollouts(clustered, student, examples, set())))
    assert given == expected
    assert lost().workers == 1 and lost().again <= IN_HAND
    assert 0 < token_count.total() - counted <= 2 * tokens, "what the dead one did is not told"
    assert idle_time.total().working > working

    work = [(e, by_example(expected)[e.example_id]) for e in examples]
    scores = rows(score_rollouts(alone, teacher, work))
    assert len(scores) == len(expected)
    assert rows(score_rollouts(clustered, teacher, work)) == scores


# --- workers that die ------------------------------------------------------------------------


@pytest.fixture
def config() -> Config:
    return load_config(ROOT / "configs" / "tiny.toml", [f"cluster.workers={WORKERS}"])


@pytest.fixture
def fragile(config: Config, tmp_path: Path) -> Callable[..., Fragile]:
    deaths = tmp_path / "deaths"
    deaths.mkdir()
    return lambda **how: Fragile(config, Policy(2, config.student.path, "h"), deaths, **how)


def plan(videos: int = 6) -> list[Piece]:
    """Two videos a piece, two sentences a video."""
    return cut([example(v, s) for v in range(videos) for s in (0, 1)], 4, lambda _: True)


def ids(batches: list[Batch[Any]]) -> list[str]:
    return sorted(r for batch in batches for r in batch.records)


def test_what_an_accident_took_is_done_again(
    fragile: Callable[..., Fragile], lost: Callable[[], Losses]
) -> None:
    batches = list(by_workers(fragile(video="3.mp4", times=1), plan()))
    assert ids(batches) == sorted(e.example_id for p in plan() for e in p.examples)
    assert lost().workers == 1 and 1 <= lost().again <= IN_HAND
    assert not any(b.quarantined for b in batches)


@pytest.mark.parametrize("asks_ahead", [False, True])
def test_a_video_that_kills_three_workers_is_given_up(
    fragile: Callable[..., Fragile], lost: Callable[[], Losses], asks_ahead: bool
) -> None:
    """Alone: its neighbours in the piece, and whatever else was in those workers' hands, go on.
    Nor does an engine that asks ahead wait for a piece that is not handed out."""
    work = fragile(video="3.mp4", asks_ahead=asks_ahead)
    batches = list(by_workers(work, plan()))
    given_up = [q for b in batches for q in b.quarantined]
    assert [q.item_id for q in given_up] == ["3-0", "3-1"]
    for item in given_up:
        assert (item.kind, item.stage, item.policy_version) == (faults.WORKER_LOST, "rollout", 2)
        assert item.video_path == "3.mp4"
        assert item.reason.startswith(
            "3 workers have died while they worked on it, the last: Worker"
        )
        assert "causes" not in item.reason and len(item.reason) < 200
    others = (e.example_id for p in plan() for e in p.examples if e.video_path != "3.mp4")
    assert ids(batches) == sorted(others)
    assert len(list(work.deaths.iterdir())) == 3 == lost().workers


def test_an_error_of_the_work_is_said_as_in_one_process(fragile: Callable[..., Fragile]) -> None:
    with pytest.raises(VideoOPDError) as raised:
        list(by_workers(fragile(refuses="3.mp4"), plan()))
    assert type(raised.value) is EngineCrashError, "what it is decides whether it is tried again"
    assert str(raised.value) == "3.mp4 cannot be; take another"


def test_workers_that_die_before_they_work_end_the_stage(fragile: Callable[..., Fragile]) -> None:
    with pytest.raises(VideoOPDError, match="3 workers have died while they opened the model"):
        list(by_workers(fragile(dies_opening=True), plan()))


def test_workers_that_die_of_anything_end_the_stage_and_nothing_is_given_up(
    fragile: Callable[..., Fragile],
) -> None:
    given: list[Batch[Any]] = []
    with pytest.raises(VideoOPDError, match="workers die of whatever they are given"):
        for batch in by_workers(fragile(video="*"), plan(2)):
            given.append(batch)
    assert given == []


def test_who_deals_holds_two_pieces_a_worker(fragile: Callable[..., Fragile]) -> None:
    """However slow it is with the rows, and however many pieces there are."""
    handed = taken = 0

    def loaded(piece: Piece) -> Piece:
        nonlocal handed
        handed += 1
        assert handed - taken <= WORKERS * IN_HAND
        return piece

    every = cut([example(v) for v in range(60)], 1, lambda _: True)
    for _ in by_workers(fragile(), every, loaded):
        taken += 1
        assert handed - taken < WORKERS * IN_HAND
    assert taken == handed == 60
