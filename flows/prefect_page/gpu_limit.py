"""The concurrency limit `gpu` of a Prefect server: its slots are the cards of a machine.

    prefect gcl create gpu --limit 8        # or: videoopd up --gpus 8

A stage that computes on cards waits until as many slots are free and holds them until it ends.
Where the server has no such limit nothing is waited for, and on a CPU never. A holder that is
killed cannot give its slots back; the server takes them after `LEASE_SECONDS`, the shortest that it
grants.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING

from flows.console.progress import mention
from flows.prefect_page.sending import answered, is_shared
from opd_core.config.load import Config
from opd_core.extensions import ENGINES
from opd_core.plan.present import is_cpu
from opd_core.types import VideoOPDError

if TYPE_CHECKING:
    from prefect.client.schemas.responses import GlobalConcurrencyLimitResponse

LIMIT = "gpu"
LEASE_SECONDS = 60.0


def cards_of(config: Config, stage: str, on_cpu: Callable[[str], bool] = is_cpu) -> int:
    """How many cards a stage of a config takes; 0 on a CPU, for one that computes nothing, and for
    a teacher that is elsewhere. `on_cpu`: whether a `machine.device` will be the CPU."""
    teachers = {teacher.engine for teacher in config.all_teachers}
    engines = {
        "validate": teachers,
        "rollout": {config.rollout.engine},
        "score": teachers,
        "evaluate": {config.evaluate.engine},
        "update": {"hf"},
    }.get(stage, set())
    here = {name for name in engines if ENGINES[name].identity is None}
    if not here or on_cpu(config.machine.device):
        return 0
    if config.cluster is not None:
        return config.cluster.workers * config.cluster.devices_per_worker
    return config.vllm.tensor_parallel_size if "vllm" in here else 1


@contextmanager
def in_line(config: Config, stage: str) -> Iterator[Callable[[], None]]:
    """Yields what waits for the stage's cards, once: it is called when there is something to do.
    They are held until the block is left."""
    with ExitStack() as held:
        has_waited = False

        def wait() -> None:
            nonlocal has_waited
            if not has_waited:
                has_waited = True
                if is_shared() and (cards := cards_of(config, stage)):
                    held.enter_context(occupied(cards, stage))

        yield wait


@contextmanager
def occupied(cards: int, stage: str) -> Iterator[None]:
    """Hold so many slots. Raises `VideoOPDError` where there will never be as many."""
    limit = answered(_limit, f"the limit {LIMIT!r} of the Prefect server is not kept")
    if limit is None or not limit.active:
        yield
        return
    if cards > limit.limit:
        raise VideoOPDError(
            f"{stage} takes {cards} cards, and the limit {LIMIT!r} of the Prefect server has "
            f"{limit.limit}; raise it by `prefect gcl update {LIMIT} --limit {cards}`, or lower "
            "cluster.workers or vllm.tensor_parallel_size"
        )
    if limit.active_slots + cards > limit.limit:
        mention(
            f"{stage}: waiting for {cards} of the {limit.limit} slots of the limit {LIMIT!r}, "
            f"{limit.active_slots} of which are taken"
        )
    with _slots(cards):
        yield


def _slots(cards: int) -> AbstractContextManager[None]:
    from prefect.client.schemas.objects import ConcurrencyLeaseHolder
    from prefect.concurrency.sync import concurrency
    from prefect.context import TaskRunContext

    task = TaskRunContext.get()
    holder = None
    if task is not None:
        holder = ConcurrencyLeaseHolder(type="task_run", id=task.task_run.id)
    return concurrency(
        LIMIT,
        occupy=cards,
        lease_duration=LEASE_SECONDS,
        holder=holder,
        raise_on_lease_renewal_failure=False,  # a server that is away for a while stops nobody
    )


def set_limit(cards: int) -> None:
    """Make the limit of the server, or give it another size."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        client.upsert_global_concurrency_limit_by_name(LIMIT, cards)


def _limit() -> GlobalConcurrencyLimitResponse | None:
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    with get_client(sync_client=True) as client:
        try:
            return client.read_global_concurrency_limit_by_name(LIMIT)
        except ObjectNotFound:
            return None
