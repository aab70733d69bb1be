"""Ray clusters of several machines, all of them this one, as tests start and end them.

    python -m tests.flows.clusters CONFIG            a round
    python -m tests.flows.clusters CONFIG FOLDER     one that waits where a machine is to die

The round is this project's own; before it begins, the places are patched where it waits for the
test to have killed a machine: once a stage, when its pieces are in the hands of workers.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

PATIENCE_SECONDS = 1500.0
STAGES = ("validate", "rollout", "score", "update", "evaluate")


@contextmanager
def two_machines(cores: int = 1) -> Iterator[Cluster]:
    """A head without cores for work, and two machines with some; all are gone at the end.

    They and those who join them listen on 127.0.0.1 alone.
    """
    from ray._private import ray_constants
    from ray._private.authentication_test_utils import reset_auth_token_state
    from ray.cluster_utils import Cluster

    environment = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",  # else all other tests come first
        "RAY_AUTH_MODE": "disabled",  # for all of them alike
        ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0",
    }
    try:
        with (
            patch.dict(os.environ, environment),
            patch.object(ray_constants, "ENABLE_RAY_CLUSTER", False),
        ):
            reset_auth_token_state()
            cluster = Cluster(
                initialize_head=True, head_node_args=machine(0) | {"include_dashboard": False}
            )
            try:
                for _ in range(2):
                    cluster.add_node(**machine(cores))
                yield cluster
            finally:
                cluster.shutdown()
    finally:
        reset_auth_token_state()  # for who asks Ray next in this process


def machine(cores: int) -> dict[str, object]:
    """As `Cluster.add_node` takes it."""
    return {"num_cpus": cores, "object_store_memory": 100 << 20, "node_ip_address": "127.0.0.1"}


def replace_machine(cluster: Cluster, node_id: str | None) -> None:
    """Kill that machine with all that runs there, or any that works; another one joins."""
    nodes = [node for node in cluster.worker_nodes if node_id in (None, node.node_id)]
    cluster.remove_node(nodes[0], allow_graceful=False)
    cluster.add_node(**machine(1))


def asked_to_kill(folder: Path, stage: str) -> str | None:
    """The machine that is to die in the middle of a stage, once it is; "" for any."""
    try:
        return (folder / f"{stage}.middle").read_text()
    except FileNotFoundError:
        return None


def _wait_for_a_death(folder: Path, stage: str, node_id: str = "") -> None:
    """Once a stage."""
    if (folder / f"{stage}.middle").exists():
        return
    aside = folder / f".{stage}"
    aside.write_text(node_id)
    aside.rename(folder / f"{stage}.middle")
    until = time.monotonic() + PATIENCE_SECONDS
    while not (folder / f"{stage}.killed").exists():
        assert time.monotonic() < until, f"nobody killed a machine in {stage}"
        time.sleep(0.1)


def _arm(folder: Path) -> None:
    from opd_core.cluster.dealing import Dealing
    from opd_core.cluster.work import Loaded
    from opd_core.cluster.workers import Workers
    from opd_core.update import on_cluster

    hand_out = Workers._hand_out

    def waiting(self: Workers[object], dealing: Dealing, loaded: Loaded) -> None:
        hand_out(self, dealing, loaded)
        begun = any(member.hand for member in self._members)
        stage = self._work.stage
        made = self._work.policy
        of_base = stage == "evaluate" and made.version == 0
        if begun and stage in STAGES and not of_base:
            _wait_for_a_death(folder, stage)

    setattr(Workers, "_hand_out", waiting)  # noqa: B010
    setattr(on_cluster, "_rank", partial(_dying_rank, folder))  # noqa: B010


def _dying_rank(folder: Path, told: dict[str, object]) -> object:
    """A rank: before the second step the second one waits for its machine's death."""
    import ray
    from torch import distributed

    from opd_core.update import on_cluster
    from opd_core.update.trained_model import TrainedModel

    make_step, calls = TrainedModel.step, 0

    def waiting(self: TrainedModel, to_come: float) -> tuple[float, float]:
        nonlocal calls
        if calls == 1 and distributed.get_rank() == 1:
            _wait_for_a_death(folder, "update", ray.get_runtime_context().get_node_id())
        calls += 1
        return make_step(self, to_come)

    setattr(TrainedModel, "step", waiting)  # noqa: B010
    try:
        return on_cluster._rank(told)
    finally:
        setattr(TrainedModel, "step", make_step)  # noqa: B010


if __name__ == "__main__":
    from tests.flows.clusters import _arm as arm  # by its name, which the ranks import
    from tests.flows.kill_points import run_without_server

    for folder in sys.argv[2:]:
        arm(Path(folder))
    run_without_server(sys.argv[1], 1)
