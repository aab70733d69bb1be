"""The workers of a stage: started on Ray, kept busy, replaced when they die.

The process that deals holds no more than what is in the workers' hands, two pieces each, however
large the round is: a piece is read when it is handed out, and its rows go on before the next is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar

from opd_core import faults
from opd_core.cluster import losses
from opd_core.cluster.connection import connected
from opd_core.cluster.dealing import DEATHS, IN_HAND, Dealing, Dealt, prompt_tokens
from opd_core.cluster.resources import cluster_of, of_worker
from opd_core.cluster.use import add
from opd_core.cluster.work import Loaded, Piece, StageWork, as_it_is, given_up
from opd_core.prompts.batches import store_in_use
from opd_core.types import Batch, QuarantinedItem, VideoOPDError

Record = TypeVar("Record")

CALLS = IN_HAND + 2
"""At a time: pieces in hand, a pause, the end."""
CLOSE_SECONDS = 30.0
"""For an orderly end (an engine's own processes); then a worker is killed."""


def by_workers(
    work: StageWork[Record], plan: Sequence[Piece], loaded: Loaded = as_it_is
) -> Iterator[Batch[Record]]:
    """The records of all pieces, as workers have them ready.

    Raises `VideoOPDError` as computing them in this process would; and where workers die before
    any piece is computed, so that it cannot be the videos.
    """
    count = min(cluster_of(work.config).workers, len(plan))
    with connected(work.config), opened_workers(work, count) as workers:
        yield from workers.compute(plan, loaded)


@dataclass
class _Member:
    """A worker. It is open once nothing is `opening`."""

    number: int
    actor: Any
    opening: Any
    hand: dict[Any, Dealt] = field(default_factory=dict)
    """What waits for the rows -> the piece."""
    handed: int = 0
    is_paused: bool = False


class Workers(Generic[Record]):
    """Some workers, warm for any number of plans."""

    def __init__(self, work: StageWork[Record], count: int) -> None:
        import ray

        self._work = work
        self._shipped = ray.put(work), ray.put(store_in_use())
        self._died_opening = 0
        self._members = [self._start(number) for number in range(count)]

    def wait_until_open(self) -> None:
        """All of them. Raises `VideoOPDError` where one cannot be."""
        while waiting := [m.opening for m in self._members if m.opening is not None]:
            for _ in self._take(waiting, Dealing((), lambda _: 0.0)):
                pass

    def compute(self, plan: Sequence[Piece], loaded: Loaded = as_it_is) -> Iterator[Batch[Record]]:
        """The records of a plan, batch by batch."""
        video = self._work.config.video
        dealing = Dealing(plan, partial(prompt_tokens, video=video))
        given_up_first: list[Batch[Record]] = []
        """Before anything was computed: it may not be the videos."""
        computed = False
        while len(dealing) or any(m.hand for m in self._members):
            self._hand_out(dealing, loaded)
            waiting = [m.opening for m in self._members if m.opening is not None]
            waiting += [ref for m in self._members for ref in m.hand]
            for batch in self._take(waiting, dealing):
                is_lost = not batch.records and any(_is_lost(q) for q in batch.quarantined)
                computed = computed or not is_lost
                if not computed:
                    given_up_first.append(batch)
                    if len(given_up_first) == 1:
                        continue
                    raise VideoOPDError(
                        f"workers die of whatever they are given, {losses.total().workers} by now, "
                        f"the last of {batch.quarantined[0].video_path} "
                        f"({batch.quarantined[0].reason}); run the stage without [cluster] to see "
                        "why, or with fewer cluster.workers where memory is short"
                    )
                yield from given_up_first
                given_up_first.clear()
                yield batch
        yield from given_up_first

    def close(self) -> None:
        """Let them end in order."""
        import ray

        ends = [m.actor.close.remote() for m in self._members if m.opening is None]
        ready, _ = ray.wait(ends, num_returns=len(ends), timeout=CLOSE_SECONDS) if ends else ([], 0)
        for end in ready:
            with suppress(ray.exceptions.RayError):
                add(ray.get(end))

    def kill(self) -> None:
        """At once, whatever they do."""
        import ray

        for member in self._members:
            with suppress(ValueError, ray.exceptions.RayError):
                ray.kill(member.actor)

    def _start(self, number: int) -> _Member:
        import ray

        from opd_core.cluster.worker import Worker

        work = self._work
        needs = of_worker(work.config, ray.cluster_resources().get("GPU", 0.0))
        actor = (
            ray.remote(Worker)
            .options(
                name=_unused(f"{self._title}-{number}"),
                num_cpus=needs.cores,
                num_gpus=needs.cards,
                max_concurrency=CALLS,
            )
            .remote(*self._shipped)
        )
        return _Member(number, actor, actor.open.remote())

    @property
    def _title(self) -> str:
        """As on Prefect's page."""
        policy, stage = self._work.policy, self._work.stage
        return f"{stage}-round-{policy.version if stage == 'evaluate' else policy.round}"

    def _hand_out(self, dealing: Dealing, loaded: Loaded) -> None:
        ready = [m for m in self._members if m.opening is None]
        opening = len(self._members) - len(ready)
        for place, dealt in dealing.deal([list(m.hand.values()) for m in ready], opening):
            member = ready[place]
            call = member.actor.compute.options(name=self._title)
            member.hand[call.remote(loaded(dealt.piece))] = dealt
            member.handed, member.is_paused = member.handed + 1, False
        for member in ready:
            if 0 < len(member.hand) < IN_HAND and not member.is_paused:
                member.actor.pause.remote(member.handed)
                member.is_paused = True

    def _take(self, waiting: Sequence[Any], dealing: Dealing) -> Iterator[Batch[Record]]:
        """Wait for one of them: rows, a worker that is open, or one that is no more."""
        import ray

        (ref,), _ = ray.wait(list(waiting), num_returns=1)
        member = next(m for m in self._members if ref == m.opening or ref in m.hand)
        try:
            content = self._content(ref)
        except _gone() as error:
            yield from self._replace(member, dealing, _how(error))
            return
        if ref == member.opening:
            member.opening, self._died_opening = None, 0
            add(content)
            return
        del member.hand[ref]
        batch, use = content
        add(use)
        yield batch

    def _content(self, ref: Any) -> Any:
        """Raises what the worker has raised, as it would be raised in this process."""
        import ray

        try:
            return ray.get(ref)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, VideoOPDError):
                raise error.cause from None
            raise

    def _replace(self, member: _Member, dealing: Dealing, how: str) -> Iterator[Batch[Record]]:
        import ray

        with suppress(ValueError, ray.exceptions.RayError):
            ray.kill(member.actor)  # it may only be out of reach
        hand: list[Dealt] = []
        for ref, dealt in member.hand.items():
            try:  # it may have been done before
                batch, use = self._content(ref)
            except _gone():
                hand.append(dealt)
            else:
                add(use)
                yield batch
        if member.opening is not None:
            self._died_opening += 1
            if self._died_opening == DEATHS:
                raise VideoOPDError(
                    f"{DEATHS} workers have died while they opened the model, the last: "
                    f"{how}; run the stage without [cluster] to see why, or with fewer "
                    "cluster.workers where memory is short"
                )
        lost = dealing.died(hand)
        losses.happened(again=len(hand) - len(lost))
        self._members[self._members.index(member)] = self._start(member.number)
        for piece in lost:
            reason = f"{DEATHS} workers have died while they worked on it, the last: {how}"
            yield given_up(self._work, piece, reason)


_used: Counter[str] = Counter()


def _unused(name: str) -> str:
    """The name of an actor is its own until Ray has noticed that it is no more."""
    _used[name] += 1
    return name if _used[name] == 1 else f"{name}-{_used[name]}"


@contextmanager
def opened_workers(work: StageWork[Record], count: int) -> Iterator[Workers[Record]]:
    """`count` workers, gone when the block is left. They open in the background."""
    workers = Workers(work, count)
    try:
        yield workers
        workers.close()
    finally:
        workers.kill()


def _gone() -> tuple[type[Exception], ...]:
    """What Ray raises for an answer of a worker that is no more, or whose machine is none."""
    from ray import exceptions

    return (
        exceptions.RayActorError,
        exceptions.WorkerCrashedError,
        exceptions.OutOfMemoryError,
        exceptions.NodeDiedError,
        exceptions.ObjectLostError,
    )


def _how(error: Exception) -> str:
    """How a worker ended, by Ray: its detail where there is one, without advice."""
    text = " ".join(str(error).split())
    _, _, detail = text.partition("Worker exit detail: ")
    return (detail or str(error).strip().partition("\n")[0]).partition(" Some common causes")[0]


def _is_lost(item: QuarantinedItem) -> bool:
    return item.kind == faults.WORKER_LOST
