"""What a worker asks of a cluster, and the cards of its settings."""

from __future__ import annotations

import pytest

from opd_core.cluster.resources import of_worker, refuse_too_few
from opd_core.config.load import Config, load_config
from opd_core.types import VideoOPDError
from tests.tiny_config import ROOT


def config(*overrides: str) -> Config:
    return load_config(ROOT / "configs" / "tiny.toml", ["cluster.workers=4", *overrides])


@pytest.mark.parametrize(
    ("overrides", "cards_there", "cores", "cards"),
    [
        (["machine.device='cpu'"], 8, 1, 0),
        (["machine.device='cpu'", "machine.threads=3"], 0, 3, 0),
        (["machine.device='auto'"], 0, 1, 0),
        (["machine.device='auto'"], 8, 1, 1),
        (["machine.device='cuda'", "cluster.devices_per_worker=2"], 0, 2, 2),
        (["machine.device='auto'", "cluster.devices_per_worker=2"], 0, 1, 0),
    ],
)
def test_cores_and_cards(overrides: list[str], cards_there: int, cores: int, cards: int) -> None:
    threads = [] if any("threads" in o for o in overrides) else ["machine.threads=1"]
    assert of_worker(config(*threads, *overrides), cards_there) == (cores, cards)


def test_a_cluster_that_is_too_small_is_refused_at_once() -> None:
    """Ray would wait for it."""
    two = config("machine.device='cuda'", "cluster.devices_per_worker=2", "machine.threads=1")
    refuse_too_few(two, {"GPU": 8.0, "CPU": 8.0})
    with pytest.raises(VideoOPDError, match="4 take 8 cards, and the cluster has 7; lower"):
        refuse_too_few(two, {"GPU": 7.0, "CPU": 64.0})
    with pytest.raises(VideoOPDError, match="4 take 8 cores, and the cluster has 7"):
        refuse_too_few(two, {"GPU": 8.0, "CPU": 7.0})


def test_a_group_of_cards_needs_a_worker_that_has_them() -> None:
    """vLLM's tensor parallelism."""
    vllm = ["rollout.engine='vllm'", "vllm.tensor_parallel_size=4", "machine.device='cuda'"]
    assert of_worker(config(*vllm, "cluster.devices_per_worker=4"), 16).cards == 4
    with pytest.raises(VideoOPDError, match="set cluster.devices_per_worker = 4"):
        config(*vllm)
    config(*vllm[1:])  # nobody asks vLLM


def test_one_card_by_name_is_no_place_for_workers() -> None:
    with pytest.raises(VideoOPDError, match="gives each worker its own; set machine.device"):
        config("machine.device='cuda:1'")


def test_no_hash_knows_of_the_workers() -> None:
    alone = load_config(ROOT / "configs" / "tiny.toml")
    assert config().hash == config("cluster.address='auto'").hash == alone.hash
    assert "cluster" not in alone.to_json()
