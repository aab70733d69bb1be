"""The steps of an update as a rank computes them, each with its rows: one is there at a time.

Videos of the next step are decoded and encoded meanwhile (`ExampleEncoder.encode_batches`). Its
rows, which take milliseconds, are read when it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from opd_core.config.load import Config
from opd_core.model.prefix_tree import PrefixTree
from opd_core.model.ranks import Ranks
from opd_core.prompts.batches import EncodedBatch, ExampleEncoder
from opd_core.scoring.trees import rollout_tree
from opd_core.types import GroundingExample, VideoOPDError
from opd_core.update.chunk import Fact
from opd_core.update.rows import Trained, TrainedRows
from opd_core.update.shares import Share, shares
from opd_core.update.training_loss import facts_of


@dataclass(frozen=True, slots=True)
class ReadyStep:
    """What a rank computes of a step."""

    trees: list[PrefixTree]
    trained: list[Trained]
    counted: bool
    """False: they are another rank's, and run along."""

    def facts(self, config: Config) -> dict[str, Fact]:
        """By rollout id."""
        facts = (facts_of(config, one.rollouts, one.scores) for one in self.trained)
        return {fact.rollout.rollout_id: fact for of_one in facts for fact in of_one}


def ready_steps(
    encoder: ExampleEncoder,
    steps: Sequence[Sequence[GroundingExample]],
    rows: TrainedRows,
    version: int,
    ranks: Ranks,
    scores: bool = True,
) -> Iterator[ReadyStep]:
    """One after the other. Let go of one before the next is asked for. Raises `VideoOPDError` on
    all ranks where the video of a rollout is not what it was."""
    own = shares(steps, rows, ranks)
    batches = encoder.encode_batches([share.examples for share in own], "update", version)
    for share in own:
        yield ranks.together(partial(_ready, batches, share, rows, scores))


def _ready(
    batches: Iterator[EncodedBatch], share: Share, rows: TrainedRows, scores: bool
) -> ReadyStep:
    batch, trained = next(batches), rows.read(share.examples, scores)
    return ReadyStep(_trees(batch, trained), trained, share.counted)


def _trees(batch: EncodedBatch, trained: Sequence[Trained]) -> list[PrefixTree]:
    for item in batch.quarantined:
        raise VideoOPDError(
            f"{item.video_path}, on which selected rollouts stand, can no longer be used "
            f"({item.reason}); restore it and give the command again, or take its annotations "
            "out of data.train"
        )
    rollouts = {one.example.example_id: list(one.rollouts) for one in trained}
    return [rollout_tree(video, rollouts) for video in batch.videos]
