"""How far a quantised teacher is from the whole one, a token, on the same answers.

    videoopd bench quantised-teacher

The shipped teacher on rollouts of the tiny world's student; and a shape of twelve layers with
random weights, whose lm_head is scaled so that it is as sure of a token as a language model is. (In
random weights nothing repeats itself, so rounding costs them more than trained ones.) Both in
float32, so that nothing but the quantisation is measured; beside it stands what bfloat16 does.
FP8 is measured with the weights rounded, as a CPU scores, and with activations too, as an H100.

Shape suffixes: C completion tokens.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from flows.bench.drawn import DrawnTokenizer, Shape, drawn_model, drawn_prompt
from flows.bench.interleaved import Row
from flows.bench.rounds import drawn_examples, sampled
from flows.bench.tiny_config import world_config
from opd_core.config.load import load_config
from opd_core.engines.base import Request, SamplingParams
from opd_core.engines.hf.sampling import HFEngine
from opd_core.model.divergences import kl
from opd_core.model.prefix_tree import PrefixTree, fill, grow, pack
from opd_core.model.quantised import quantise, weight_bytes
from opd_core.model.tree_model import TreeModel, load_model
from opd_core.model.vocabulary import HasVocabulary
from opd_core.prompts.batches import ExampleEncoder
from opd_core.scoring.trees import rollout_tree
from opd_core.types import Policy

EXAMPLES, ROLLOUTS = 512, 8
VIDEOS, ANSWER = 8, 64
"""Of the drawn shape: one prompt each, `ROLLOUTS` answers of so many tokens."""
LOGIT_SPREAD = 6.0
"""The drawn lm_head is multiplied by it: an entropy of about 1 nat instead of 9."""
DEEP = Shape(
    "drawn, 12 layers",
    {"vocab_size": 8192, "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 12,
     "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64,
     "max_position_embeddings": 32_768, "tie_word_embeddings": False,
     "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [12, 10, 10]}},
    {"depth": 2, "hidden_size": 64, "intermediate_size": 128, "num_heads": 2,
     "out_hidden_size": 512, "deepstack_visual_indexes": [0]},
)  # fmt: skip


def _bfloat16(model: nn.Module) -> None:
    model.to(torch.bfloat16)


WAYS: Mapping[str, Callable[[nn.Module], None]] = {
    "bfloat16": _bfloat16,
    "fp8": partial(quantise, how="fp8", activations=False),
    "fp8, activations too": partial(quantise, how="fp8", activations=True),
    "int4": partial(quantise, how="int4"),
}
"""What is done to a model in float32."""


class Compared(NamedTuple):
    """Two models at each token of the same answers, [C]."""

    kl: Tensor
    """KL(whole || quantised), nats."""
    same_top: Tensor
    """Whether the likeliest token is the same."""
    change: Tensor
    """|log-prob of the answer's token in one - in the other|, nats."""

    def told(self) -> dict[str, float]:
        """The numbers of a row."""
        numbers = {"tokens": float(len(self.kl))}
        for name, values in (("KL", self.kl), ("|change of log q|", self.change)):
            numbers[f"{name}, mean"] = float(values.mean())
            for share in (0.5, 0.99, 0.999):
                numbers[f"{name}, {100 * share:g} %"] = float(values.quantile(share))
            numbers[f"{name}, largest"] = float(values.max())
        return numbers | {"same top token": float(self.same_top.double().mean())}


@torch.inference_mode()
def compared(whole: TreeModel, other: TreeModel, trees: Sequence[PrefixTree]) -> Compared:
    """Both models' distributions at every token of the trees' answers."""
    parts: list[Compared] = []
    for group in fill(trees, 8192):
        packed = pack(group)
        both = (model.completion_distributions(packed) for model in (whole, other))
        for (keys, ids_C, whole_CV), (others, _, other_CV) in zip(*both, strict=True):
            assert keys == others
            change_CV = (other_CV - whole_CV).gather(1, ids_C[:, None])[:, 0].abs()
            same_C = other_CV.argmax(dim=1) == whole_CV.argmax(dim=1)
            # In float64: two sums of almost the same size, of which 1e-6 is left.
            kl_C = kl(whole_CV.double(), other_CV.double()).clamp(min=0.0)
            parts.append(Compared(kl_C.cpu(), same_C.cpu(), change_CV.double().cpu()))
    return Compared(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def quantised_teacher_rows(
    examples: int = EXAMPLES,
    videos: int = VIDEOS,
    answer: int = ANSWER,
    world_videos: int | None = None,
) -> Iterator[Row]:
    """Rows of both models, each way of making them smaller."""
    with tempfile.TemporaryDirectory() as folder:
        yield from _rows("tiny world's teacher", *_tiny_world(Path(folder), examples, world_videos))
    yield from _rows(DEEP.name, *_drawn(videos, answer))


def _rows(
    name: str, whole: TreeModel, tokenizer: HasVocabulary, trees: Sequence[PrefixTree]
) -> Iterator[Row]:
    for way, change in WAYS.items():
        model = copy.deepcopy(whole.model)
        change(model)
        measured = compared(whole, TreeModel(model, tokenizer), trees)
        yield Row(
            f"{name}, {way}: KL to the whole one, mean a token",
            float(measured.kl.mean()),
            "nats",
            "measured",
            None,
            measured.told() | {"MiB of weights": _mebibytes(whole.model, change)},
        )


def _mebibytes(whole: nn.Module, change: Callable[[nn.Module], None]) -> float:
    """Of a model that was bfloat16 before."""
    model = copy.deepcopy(whole).to(torch.bfloat16)
    change(model)
    return weight_bytes(model) / 2**20


def _tiny_world(
    folder: Path, examples: int, videos: int | None
) -> tuple[TreeModel, HasVocabulary, list[PrefixTree]]:
    path = world_config(folder, 0, videos, videos and 1)
    config = load_config(path, [f"rollout.rollouts_per_example={ROLLOUTS}"])
    drawn = drawn_examples(config, examples)
    rollouts = sampled(config, Policy(0, config.student.path, "student"), drawn)
    encoder = ExampleEncoder(config, config.teacher.path)
    (encoded,) = encoder.encode_batches([drawn], "score", 0)
    tokenizer = encoder.prompts.tokenizer
    whole = TreeModel(load_model(config.teacher.path, "float32"), tokenizer)
    return whole, tokenizer, [rollout_tree(video, rollouts) for video in encoded.videos]


def _drawn(videos: int, answer: int) -> tuple[TreeModel, HasVocabulary, list[PrefixTree]]:
    tokenizer = DrawnTokenizer.of(DEEP)
    whole = drawn_model(DEEP, torch.device("cpu"))
    with torch.no_grad():
        whole.model.lm_head.weight *= LOGIT_SPREAD
    prompts = [drawn_prompt(tokenizer, 8, 4, 32, seed) for seed in range(videos)]
    requests = [
        [Request(video, prompt, tuple(range(ROLLOUTS * video, ROLLOUTS * (video + 1))))]
        for video, prompt in enumerate(prompts)
    ]
    answers = HFEngine(whole, tokenizer).sample(requests, SamplingParams(answer))
    trees = [
        grow(
            [prompt.token_ids],
            [[((video, i), one.token_ids) for i, one in enumerate(answers[video])]],
            prompt.vision,
        )
        for video, prompt in enumerate(prompts)
    ]
    return whole, tokenizer, trees
