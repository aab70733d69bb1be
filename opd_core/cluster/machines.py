"""The machines of a cluster asked something: the others, each once; or one as a worker has it."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from opd_core.cluster.connection import connected
from opd_core.cluster.resources import of_worker
from opd_core.config.load import Config
from opd_core.types import VideoOPDError

Answer = TypeVar("Answer")
P = ParamSpec("P")

PATIENCE_SECONDS = 120.0
"""For all of them to answer; a machine imports the program first."""


def on_other_machines(
    ask: Callable[P, Answer], *given: P.args, **named: P.kwargs
) -> dict[str, Answer]:
    """Host -> what the function `ask` returns there, for all machines but that of this process.

    Raises `VideoOPDError` naming a machine that cannot run it, or does not answer.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    asked = {}
    for node in ray.nodes():
        if node["Alive"] and node["NodeID"] != here:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            remote = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(ask)
            asked[remote.remote(*given, **named)] = (
                f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
            )
    ready, silent = ray.wait(list(asked), num_returns=len(asked), timeout=PATIENCE_SECONDS) \
        if asked else ([], [])  # fmt: skip
    if silent:
        raise VideoOPDError(
            f"machine {asked[silent[0]]} of the cluster does not answer; take it out of the"
            " cluster, or start Ray there again"
        )
    return {asked[ref]: _answer(ray.get, ref, asked[ref]) for ref in ready}


def on_a_worker(
    config: Config, ask: Callable[P, Answer], *given: P.args, **named: P.kwargs
) -> Answer:
    """What the function `ask` returns where a worker of `config` would be, with what it would have.
    Raises what it raises, and `VideoOPDError` where it cannot be run there."""
    import ray

    with connected(config):
        needs = of_worker(config, ray.cluster_resources().get("GPU", 0.0))

        def asked() -> Answer:  # Ray takes no built-in functions and no partial ones
            return ask(*given, **named)

        remote = ray.remote(num_cpus=needs.cores, num_gpus=needs.cards)(asked)
        answer: Answer = _answer(ray.get, remote.remote(), "of a worker")
        return answer


def _answer(get: Callable[[object], Answer], ref: object, host: str) -> Answer:
    from ray.exceptions import RayError

    try:
        return get(ref)
    except RayError as error:
        if isinstance(cause := getattr(error, "cause", None), VideoOPDError):
            raise VideoOPDError(str(cause)) from None
        why = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise VideoOPDError(
            f"machine {host} of the cluster cannot run this program ({why[-1] if why else error});"
            " install the same version there"
        ) from None
