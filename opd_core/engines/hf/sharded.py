"""The trainer's forward pass over a model that several cards of this machine hold together, for a
teacher that is larger than one.

This process is the first rank. The others are children of it; each is told what it is asked and
computes the same, layer by layer, with the weights that all of them bring along. Only the first
one's answers are read.
"""

from __future__ import annotations

import contextlib
import pickle
import tempfile
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, distributed

from opd_core import child_process
from opd_core.child_process import Child, ChildCrash
from opd_core.engines.base import Request, Sample, SamplingParams, Scored, ScoreRequest
from opd_core.engines.crash import told
from opd_core.engines.hf.sampling import HFEngine
from opd_core.model.ranks import Ranks
from opd_core.model.sharding import shard, whole_pass
from opd_core.model.tree_model import TreeModel, choose_device, load_model, set_threads

if TYPE_CHECKING:
    from opd_core.config.load import Config
    from opd_core.config.sections import ScoreSection


ENDING_SECONDS = 1.0
"""For another rank that has failed to be gone, so that what it printed is known."""


@dataclass(frozen=True, slots=True)
class Opening:
    """What a rank opens."""

    config: Config
    folder: Path
    dtype: str
    tokenizer: Any
    size: int
    meeting: Path
    """A file that is not there yet, through which the ranks find each other."""
    rank: int = 0


@contextmanager
def opened_sharded(
    config: Config, folder: Path, dtype: str, tokenizer: Any, size: int
) -> Iterator[ShardedEngine]:
    """The checkpoint in `folder`, held by `size` ranks."""
    with tempfile.TemporaryDirectory(prefix="videoopd-ranks-") as room:
        opening = Opening(config, folder, dtype, tokenizer, size, Path(room) / "meeting")
        others = [Child(__name__) for _ in range(1, size)]
        try:
            for rank, child in enumerate(others, start=1):
                child.send(replace(opening, rank=rank))
            with _of_all(others):
                own = _joined(opening)
            yield ShardedEngine(*own, others)
        finally:
            for child in others:
                child.end()
            if distributed.is_initialized():
                distributed.destroy_process_group()


class ShardedEngine(HFEngine):
    """Of the first rank."""

    def __init__(
        self, model: TreeModel, tokenizer: Any, most_scored: int, others: Sequence[Child]
    ) -> None:
        super().__init__(model, tokenizer, max_scored_per_pack=most_scored)
        self._others = others

    def sample(
        self, videos: Sequence[Sequence[Request]], params: SamplingParams
    ) -> dict[Hashable, list[Sample]]:
        with self._together("sample", videos, params):
            return whole_pass(self.model.model, lambda: HFEngine.sample(self, videos, params))

    def score(
        self, videos: Sequence[Sequence[ScoreRequest]], wanted: ScoreSection
    ) -> Iterator[tuple[Hashable, Scored]]:
        with self._together("score", videos, wanted):
            scores = whole_pass(
                self.model.model, lambda: list(HFEngine.score(self, videos, wanted))
            )
        return iter(scores)

    def _agreed(self, tokens_B: Tensor) -> Tensor:
        """The first rank's: one that drew another would decode longer, and wait for the rest."""
        distributed.broadcast(tokens_B, 0)
        return tokens_B

    @contextmanager
    def _together(self, *asked: object) -> Iterator[None]:
        """Tell the others what is computed now. Raises `VideoOPDError` where one is gone."""
        with _of_all(self._others):
            _tell(self._others, asked)
            yield


@contextmanager
def _of_all(others: Sequence[Child]) -> Iterator[None]:
    """What all ranks do. Raises `VideoOPDError` where one of the others is gone."""
    try:
        try:
            yield
        except RuntimeError:
            for child in others:
                child.wait(ENDING_SECONDS)
            _tell(others, None)  # their end; says why where one is gone already
            raise
    except ChildCrash as crash:
        raise told(
            crash,
            f"one of the {len(others) + 1} processes that hold the model is gone "
            f"({crash}); where memory is short, raise cluster.teacher_shards or lower "
            "update.max_tokens_per_pack",
        ) from None


def _tell(others: Sequence[Child], message: object) -> None:
    # Pickled here: multiprocessing would hand over a tensor's memory, which is this process's.
    content = pickle.dumps(message)
    for child in others:
        child.send(content)


def _joined(opening: Opening) -> tuple[TreeModel, Any, int]:
    """This rank's part of the model, and what an engine of it is made of."""
    from torch import cuda

    config, update = opening.config, opening.config.update
    device = choose_device(config.machine.device)
    if device.type == "cuda":
        cuda.set_device(opening.rank)
    distributed.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        init_method=f"file://{opening.meeting}",
        rank=opening.rank,
        world_size=opening.size,
    )
    ranks = Ranks.joined(device)

    def sharded() -> Any:
        model = load_model(opening.folder, opening.dtype).requires_grad_(False)
        shard(model, ranks, None)
        return model

    model = TreeModel(ranks.in_turn(sharded), opening.tokenizer, update.completion_rows_per_chunk)
    return model, opening.tokenizer, update.max_tokens_per_pack


def main() -> None:
    """One of the other ranks."""
    connection = child_process.connect()
    opening: Opening = connection.recv()
    set_threads(max(opening.config.machine.threads, 1))
    engine = ShardedEngine(*_joined(opening), [])
    while (asked := _received(connection)) is not None:
        what, videos, how = asked
        getattr(engine, what)(videos, how)


def _received(connection: Connection) -> Any:
    """None: there is no more, also because the first rank is gone."""
    with contextlib.suppress(EOFError, OSError):
        return pickle.loads(connection.recv())
    return None


if __name__ == "__main__":
    main()
