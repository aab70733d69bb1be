"""Whether an engine computes what the trainer computes; asked before a row is written.

Engines go wrong silently: another resize, another normalisation, positions counted otherwise, and
all that shows is a policy that learns slowly. So every batch of every engine passes a gate that
compares what the engine answered with what we asked, and once a stage the tokens of one example are
scored by the trainer's own forward.

An example that fails goes to `quarantine`. When all examples of a batch fail, the engine is at
fault and not the examples: the stage stops.
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opd_core.config import Config
from opd_core.sampling import Engine, Refused, Sample, SeenPrompt, pixel_sample
from opd_core.types import VideoOPDError
from opd_core.vocabulary import excluded_token_ids

if TYPE_CHECKING:
    from opd_core.encoding import EncodedExample, ExampleEncoder
    from opd_core.tree_model import TreeModel

PIXEL_TOLERANCE = 2**-6
"""Of a normalised pixel: bfloat16 rounds one of 2.0 by half of that."""
TIMESTAMP = re.compile(r"<\d+(?:\.\d+)? seconds>")


@dataclass(frozen=True, slots=True)
class ProbedToken:
    """The token of the probe on which engine and trainer are furthest apart."""

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

    def __init__(self, tokenizer: Any, max_new_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._max_new_tokens = max_new_tokens
        self._size = max(tokenizer.get_vocab().values()) + 1
        self._excluded = frozenset(excluded_token_ids(tokenizer, self._size))

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
        """Where the prompt that the engine used is not ours, or None."""
        ours = item.prompt
        if seen.token_ids != ours.token_ids:
            return self._token_fault(ours.token_ids, seen.token_ids)
        if tuple(seen.grid_thw) != tuple(ours.vision.grid_thw):
            return f"the engine's grid is {seen.grid_thw}, ours {ours.vision.grid_thw}"
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


def probe_engine(
    config: Config,
    folder: Path,
    dtype: str,
    encoder: ExampleEncoder,
    engine: Engine,
    item: EncodedExample,
    answers: Mapping[Hashable, Sequence[Sample]],
) -> dict[tuple[str, int], float]:
    """(example id, sample index) -> largest |trainer - engine| log-prob of its tokens.

    Raises `VideoOPDError` above `rollout.max_engine_mismatch`. The HF engine brings the trainer's
    model along; for another one it is loaded, used and dropped.
    """
    from opd_core.tree_model import TreeModel, choose_device, load_model

    example = item.example.example_id
    model = getattr(engine, "model", None)
    if not isinstance(model, TreeModel):
        loaded = load_model(folder, dtype, choose_device(config.machine.device))
        model = TreeModel(loaded, encoder.prompts.tokenizer)
    worst = probe(model, item, answers[example])
    bound = config.rollout.max_engine_mismatch
    for token in worst:
        if not token.difference <= bound:
            raise VideoOPDError(
                f"token {token.position} ({token.token_id}) of answer {token.sample} to example "
                f"{example} has log-prob {token.engine:.6f} from the engine {engine.name!r} and "
                f"{token.trainer:.6f} from the trainer, further apart than "
                f"rollout.max_engine_mismatch = {bound}; compare their dtype and processor, or "
                "set the engine to 'hf'"
            )
    return {(example, token.sample): token.difference for token in worst}


def probe(model: TreeModel, item: EncodedExample, samples: Sequence[Sample]) -> list[ProbedToken]:
    """The worst token of each sample, by one forward pass over all of them."""
    import torch

    from opd_core.prefix_tree import grow, pack

    tree = grow(
        [item.prompt.token_ids],
        [[(index, sample.token_ids) for index, sample in enumerate(samples)]],
        item.prompt.vision,
    )
    trainer: dict[int, list[float]] = {}
    with torch.inference_mode():
        for keys, token_ids_C, logprobs_CV in model.completion_distributions(pack([tree])):
            chosen = logprobs_CV.gather(1, token_ids_C[:, None])[:, 0].tolist()
            for key in keys:
                index = int(str(key))
                length = len(samples[index].token_ids)
                trainer[index], chosen = chosen[:length], chosen[length:]
    worst: list[ProbedToken] = []
    for index, sample in enumerate(samples):
        pairs = zip(sample.token_ids, sample.logprobs, trainer[index], strict=True)
        tokens = [ProbedToken(index, p, *rest) for p, rest in enumerate(pairs)]
        # A difference that is no number is the worst of all.
        worst.append(max(tokens, key=lambda t: (math.isnan(t.difference), t.difference)))
    return worst
