"""What a worker takes of a cluster: cores and cards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from opd_core.config.load import Config
from opd_core.config.sections import ClusterSection
from opd_core.types import VideoOPDError


class Resources(NamedTuple):
    """Of one worker."""

    cores: int
    cards: int


def of_worker(config: Config, cards_there: float) -> Resources:
    """`cards_there`: those of the whole cluster; `machine.device = "auto"` asks whether there are
    any. A core a card at least: in an update each card has a process of its own."""
    device = config.machine.device
    has_card = device != "cpu" and (device != "auto" or cards_there > 0)
    cards = cluster_of(config).devices_per_worker if has_card else 0
    return Resources(max(1, config.machine.threads, cards), cards)


def refuse_too_few(config: Config, there: Mapping[str, float]) -> None:
    """Raise `VideoOPDError` where the cluster has less than all workers take together: they would
    wait for it for ever. `there`: Ray's names -> numbers."""
    workers = cluster_of(config).workers
    cards = there.get("GPU", 0.0)
    needed = of_worker(config, cards)
    for one, present, name, key in (
        (needed.cards, cards, "cards", "devices_per_worker"),
        (needed.cores, there.get("CPU", 0.0), "cores", "workers"),
    ):
        if workers * one > present:
            raise VideoOPDError(
                f"cluster.workers = {workers} take {workers * one} {name}, and the cluster has "
                f"{present:g}; lower cluster.workers" + f" or cluster.{key}" * (key != "workers")
            )


def cluster_of(config: Config) -> ClusterSection:
    """The section, where it is known to be there."""
    assert config.cluster is not None, "asked only of a config with [cluster]"
    return config.cluster
