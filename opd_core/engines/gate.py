"""Whether an engine computes what the trainer computes; asked before a row is written.

Engines go wrong silently: another resize, another normalisation, positions counted otherwise, and
all that shows is a policy that learns slowly. So every batch of every engine passes a gate that
compares what the engine answered with what we asked, and once a stage the tokens of an example and
of some others are scored by the trainer's own forward, packed otherwise than they were sampled.

An example that fails goes to `quarantine`. When all examples of a batch fail, the engine is at
fault and not the examples: the stage stops.
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from opd_core.config.load import Config
from opd_core.engines.base import OpenedEngine, Refused, Sample, SeenPrompt, pixel_sample
from opd_core.model.agreement import bound_for, served_dtype
from opd_core.model.vocabulary import excluded_token_ids
from opd_core.types import VideoOPDError

if TYPE_CHECKING:
    from opd_core.model.architectures import Architecture
    from opd_core.model.positions import PositionRule
    from opd_core.model.prefix_tree import Pack, PrefixTree
    from opd_core.model.tree_model import TreeModel
    from opd_core.prompts.batches import EncodedExample, ExampleEncoder

PIXEL_TOLERANCE = 2**-6
"""Of a normalised pixel: bfloat16 rounds one of 2.0 by half of that."""
TIMESTAMP = re.compile(r"<\d+(?:\.\d+)? seconds>")


@dataclass(frozen=True, slots=True)
class ComparedToken:
    """What engine and trainer say of a token of an answer."""

    example: str
    sample: int
    position: int
    token_id: int
    engine: float
    trainer: float

    @property
    def difference(self) -> float:
        return abs(self.trainer - self.engine)


class Gate:
    """Compares the answers to a batch with its questions."""

    def __init__(
        self,
        tokenizer: Any,
        max_new_tokens: int,
        family: Architecture,
        positions: PositionRule | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._positions = positions
        self._max_new_tokens = max_new_tokens
        self._size = max(tokenizer.get_vocab().values()) + 1
        self._excluded = frozenset(excluded_token_ids(tokenizer, self._size, family.placeholders))

    def check(
        self,
        engine: str,
        items: Sequence[EncodedExample],
        answers: Mapping[Hashable, Sequence[Sample] | Refused],
    ) -> dict[str, str]:
        """example id -> why its answers cannot be kept.

        Raises `VideoOPDError` when that is so for all examples of a batch of two or more.
        """
        faults: dict[str, str] = {}
        for item in items:
            given = answers[item.example.example_id]
            if isinstance(given, Refused):
                faults[item.example.example_id] = given.reason
                continue
            for index, sample in enumerate(given):
                if fault := self.fault(item, sample):
                    faults[item.example.example_id] = f"answer {index}: {fault}"
                    break
        if len(items) > 1 and len(faults) == len(items):
            example, fault = next(iter(faults.items()))
            raise VideoOPDError(
                f"the engine {engine!r} does not do what the trainer does: all {len(items)} "
                f"examples of a batch fail, example {example} first ({fault}); correct the "
                "processor files of the checkpoint, or use another engine"
            )
        return faults

    def fault(self, item: EncodedExample, sample: Sample) -> str | None:
        """What is wrong with one answer, or None."""
        if sample.prompt is None:
            return "the engine does not say which prompt it answered"
        return self.prompt_fault(item, sample.prompt) or self._answer_fault(sample)

    def prompt_fault(self, item: EncodedExample, seen: SeenPrompt) -> str | None:
        """Say where the prompt that the engine used is not ours; None where it is."""
        ours = item.prompt
        if seen.token_ids != ours.token_ids:
            return self._token_fault(ours.token_ids, seen.token_ids)
        if tuple(seen.grid_thw) != tuple(ours.vision.grid_thw):
            return f"the engine's grid is {seen.grid_thw}, ours {ours.vision.grid_thw}"
        if seen.second_per_grid != ours.vision.second_per_grid:
            return (
                f"the engine counts {seen.second_per_grid} seconds per grid, "
                f"we {ours.vision.second_per_grid}"
            )
        if self._positions is not None and seen.tells_position:
            position = self._positions.answer_position(ours.token_ids, ours.vision)
            if seen.answer_position != position:
                return (
                    f"the engine puts the answer at position {seen.answer_position}, we at "
                    f"{position}"
                )
        if seen.pixel_hash is not None and seen.pixel_hash != item.clip.pixel_hash:
            return f"the engine's frames are {seen.pixel_hash}, ours {item.clip.pixel_hash}"
        expected = pixel_sample(ours.vision.patches)
        if len(seen.pixels) != len(expected):
            return f"the engine's patches give {len(seen.pixels)} values, ours {len(expected)}"
        for theirs, own in zip(seen.pixels, expected, strict=True):
            if not abs(theirs - own) <= PIXEL_TOLERANCE * max(1.0, abs(own)):
                return (
                    f"the engine normalises a pixel to {theirs:.4f} that is {own:.4f} to us (does "
                    "the image processor's mean or std differ from the video processor's?)"
                )
        return None

    def _token_fault(self, ours: Sequence[int], theirs: Sequence[int]) -> str:
        times, engine_times = (
            TIMESTAMP.findall(self._tokenizer.decode(list(ids))) for ids in (ours, theirs)
        )
        if times != engine_times:
            pairs = zip([*times, None], [*engine_times, None], strict=False)
            own, other = next((a, b) for a, b in pairs if a != b)
            return f"a frame's timestamp is {other} to the engine and {own} to us"
        for position, (own_id, other_id) in enumerate(zip(ours, theirs, strict=False)):
            if own_id != other_id:
                return f"token {position} of its prompt is {other_id}, of ours {own_id}"
        return f"its prompt has {len(theirs)} tokens, ours {len(ours)}"

    def _answer_fault(self, sample: Sample) -> str | None:
        tokens = sample.token_ids
        if sample.finish_reason not in ("stop", "length"):
            return f"the finish reason is {sample.finish_reason!r}"
        if not tokens:
            return "it has no tokens"
        if sample.finish_reason == "length" and len(tokens) != self._max_new_tokens:
            return f"it was cut off at {len(tokens)} tokens of {self._max_new_tokens}"
        if len(tokens) != len(sample.logprobs):
            return f"{len(sample.logprobs)} log-probs for {len(tokens)} tokens"
        for position, (token, logprob) in enumerate(zip(tokens, sample.logprobs, strict=True)):
            if not math.isfinite(logprob):
                return f"the log-prob of token {position} is {logprob}"
            if not 0 <= token < self._size or token in self._excluded:
                return f"token {position} is {token}, which no policy may say"
        return None


def gate_of(encoder: ExampleEncoder, max_new_tokens: int) -> Gate:
    """The gate for answers to the prompts of one checkpoint."""
    prompts = encoder.prompts
    return Gate(prompts.tokenizer, max_new_tokens, prompts.architecture, prompts.positions)


def mismatches(
    config: Config,
    folder: Path,
    dtype: str,
    encoder: ExampleEncoder,
    engine: OpenedEngine,
    item: EncodedExample,
    answers: Mapping[Hashable, Sequence[Sample]],
    company: Sequence[EncodedExample] = (),
) -> dict[tuple[str, int], float]:
    """(example id, sample index) -> largest |trainer - engine| log-prob of its tokens, of `item`.

    `company` are other examples of the batch that was sampled, among which `item` is asked in
    another order; `answers` has theirs too. Raises `VideoOPDError` when a token of any of them is
    further off than `rollout.max_engine_mismatch`, or what rounding can do where that is not given
    (`opd_core/model/agreement.py`). The HF engine brings the trainer's weights along; for another
    one they are loaded, used and dropped.
    """
    from opd_core.model.tree_model import TreeModel, choose_device, load_model

    device = choose_device(config.machine.device)
    loaded = getattr(engine, "model", None)
    weights = loaded.model if isinstance(loaded, TreeModel) else load_model(folder, dtype, device)
    # A tree model of its own: what the engine's has kept of prompts may be what is wrong.
    model = TreeModel(weights, encoder.prompts.tokenizer)
    tokens = asked_again(
        model, item, answers, other_company(item, company), config.update.max_tokens_per_pack
    )
    theirs = served_dtype(config, engine.name, dtype)
    bound = bound_for(config.rollout.max_engine_mismatch, (theirs, dtype), device.type)
    worst = max(tokens, key=_badness)
    furthest = (
        f"token {worst.position} ({worst.token_id}) of answer {worst.sample} to example "
        f"{worst.example} has log-prob {worst.engine:.6f} from the engine {engine.name!r} and "
        f"{worst.trainer:.6f} from the trainer"
    )
    mend = "compare their dtype and processor, or set the engine to 'hf'"
    if not worst.difference <= bound.largest:
        raise VideoOPDError(
            f"{furthest}, further apart than rollout.max_engine_mismatch = {bound.largest} "
            f"({bound.reason}); {mend}"
        )
    if fault := bound.mean_fault([token.difference for token in tokens]):
        raise VideoOPDError(
            f"{furthest}, and the mean difference of {len(tokens)} tokens is {fault[0]:.4f}, above "
            f"{fault[1]:.4f} ({bound.reason}); {mend}, or set rollout.max_engine_mismatch, which "
            "then counts alone"
        )
    measured: dict[tuple[str, int], float] = {}
    for token in tokens:
        if token.example == item.example.example_id:
            key = (token.example, token.sample)
            measured[key] = max(measured.get(key, 0.0), token.difference)
    return measured


def other_company(
    item: EncodedExample, batch: Sequence[EncodedExample]
) -> list[list[EncodedExample]]:
    """`item` and others of its batch, as no sampler asks: the batch's last other video first, and
    the sentences of each video from the last to the first."""
    own = [i for i in batch if i.prompt.vision is item.prompt.vision and i is not item]
    others = [i for i in batch if i.prompt.vision is not item.prompt.vision]
    last = [i for i in others if i.prompt.vision is others[-1].prompt.vision]
    return [video[::-1] for video in (last, [item, *own]) if video]


def asked_again(
    model: TreeModel,
    item: EncodedExample,
    answers: Mapping[Hashable, Sequence[Sample]],
    videos: Sequence[Sequence[EncodedExample]],
    max_tokens: int = 16384,
) -> list[ComparedToken]:
    """Every token of the answers to the examples of `videos`, which hold `item`: in the trees of
    those videos, the last answer first, and of the first answer to `item` once more by itself, as
    one plain sequence. So that an error of the packing shows, also one that sampler and trainer
    have in common."""
    from opd_core.model.prefix_tree import fill, grow, pack
    from opd_core.prompts.encoder import shared_vision

    def tree(items: Sequence[EncodedExample], count: int | None = None) -> PrefixTree:
        return grow(
            [i.prompt.token_ids for i in items],
            [
                [((i.example.example_id, n), s.token_ids)
                 for n, s in reversed(list(enumerate(answers[i.example.example_id][:count])))]
                for i in items
            ],
            shared_vision([i.prompt for i in items]),
        )  # fmt: skip

    trees = [tree(items) for items in videos]
    packs = [*fill(trees, max_tokens), [tree([item], 1)]]
    return [token for group in packs for token in _compared(model, pack(group), answers)]


def _badness(token: ComparedToken) -> tuple[bool, float]:
    """A difference that is no number is the worst of all."""
    return math.isnan(token.difference), token.difference


def _compared(
    model: TreeModel, packed: Pack, answers: Mapping[Hashable, Sequence[Sample]]
) -> Iterator[ComparedToken]:
    import torch

    with torch.inference_mode():
        for keys, token_ids_C, logprobs_CV in model.completion_distributions(packed):
            chosen = logprobs_CV.gather(1, token_ids_C[:, None])[:, 0].tolist()
            for key in keys:
                example, index = cast(tuple[str, int], key)
                sample = answers[example][index]
                trainer, chosen = chosen[: len(sample.token_ids)], chosen[len(sample.token_ids) :]
                pairs = zip(sample.token_ids, sample.logprobs, trainer, strict=True)
                for position, values in enumerate(pairs):
                    yield ComparedToken(example, index, position, *values)
