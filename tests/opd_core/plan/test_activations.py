"""Bytes of a pass, counted by hand, against what autograd saves and what is alive.

On models drawn from a seed, larger and of other proportions than the shipped ones too.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import pytest
import torch

from flows.bench.drawn import BESIDE_A_FRAME, DrawnTokenizer, Shape, drawn_model, drawn_prompt
from flows.bench.planned import LiveTensors
from opd_core.model.prefix_tree import Pack as RealPack
from opd_core.model.prefix_tree import grow, pack
from opd_core.model.tree_attention import PackedAttention
from opd_core.model.tree_model import TreeModel
from opd_core.plan.activations import Pass, Precision, Trained, passing, saved
from opd_core.plan.memory import cache_bytes
from opd_core.plan.packs import Pack, Tree
from opd_core.plan.shapes import ModelShape, shape_of
from opd_core.update.checkpointing import checkpoint_layers

VOCABULARY = 512
TEXT = {
    "vocab_size": VOCABULARY, "hidden_size": 96, "intermediate_size": 224, "head_dim": 32,
    "num_hidden_layers": 4, "num_attention_heads": 3, "num_key_value_heads": 3,
    "max_position_embeddings": 4096,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [6, 5, 5]},
}  # fmt: skip
VISION = {
    "depth": 2, "hidden_size": 48, "intermediate_size": 96, "num_heads": 4, "out_hidden_size": 96,
    "deepstack_visual_indexes": [0], "num_position_embeddings": 4,
}  # fmt: skip
WIDE = {"hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 8,
        "num_key_value_heads": 2, "num_hidden_layers": 6}  # fmt: skip
TOWER = {"hidden_size": 256, "intermediate_size": 1024, "depth": 4, "out_hidden_size": 256}
SHAPES = {
    "tiny": Shape("tiny", TEXT, VISION),
    "wide": Shape("wide", {**TEXT, **WIDE}, {**VISION, "out_hidden_size": 256}),
    "tower": Shape("tower", {**TEXT, **WIDE, "num_hidden_layers": 3, "intermediate_size": 512},
                   {**VISION, **TOWER}),
}  # fmt: skip
Mode = Literal["float32", "bfloat16", "autocast"]
PRECISIONS = {"float32": Precision(4, 4), "bfloat16": Precision(2, 2),
              "autocast": Precision(4, 2, casts=True)}  # fmt: skip


@dataclass(frozen=True)
class Work:
    """Trees of one sentence each."""

    trees: int
    frames: int
    side: int
    sentence: int
    rollouts: int
    answer: int

    def planned(self) -> Pack:
        vision = self.frames * self.side**2
        root = vision + self.frames * BESIDE_A_FRAME + self.sentence
        return Pack(Tree(vision, root, 0, 1, self.rollouts, self.answer), self.trees)

    def real(self, tokenizer: DrawnTokenizer) -> RealPack:
        generator = torch.Generator().manual_seed(1)
        trees = []
        for tree in range(self.trees):
            prompt = drawn_prompt(tokenizer, self.frames, self.side, self.sentence, tree)
            answers = [
                ((tree, rollout), tokenizer.draw(self.answer, generator))
                for rollout in range(self.rollouts)
            ]
            trees.append(grow([prompt.token_ids], [answers], prompt.vision))
        return pack(trees)


SMALL_TREES = Work(8, 12, 1, 50, 2, 15)
MANY_PIXELS = Work(6, 12, 4, 50, 2, 15)
BLOCKS = Work(2, 40, 4, 40, 8, 20)
WORKS = {"small trees": SMALL_TREES, "many pixels": MANY_PIXELS, "blocks": BLOCKS}


@dataclass(frozen=True)
class Case:
    model: TreeModel
    tokenizer: DrawnTokenizer
    shape: ModelShape
    mode: Mode

    def pass_(self, trained: Trained, checkpointed: bool | float = False) -> Pass:
        return Pass(self.shape, PRECISIONS[self.mode], trained, checkpointed, on_cpu=True)

    def run(self, work: RealPack, train: bool) -> torch.Tensor:
        cast = torch.autocast("cpu", torch.bfloat16, enabled=self.mode == "autocast")
        loss = torch.zeros(())
        with torch.set_grad_enabled(train), cast:
            for _, token_ids_C, logprobs_CV in self.model.completion_distributions(work):
                loss = loss + logprobs_CV.gather(1, token_ids_C[:, None]).sum()
        return loss

    @property
    def weights(self) -> float:
        return float(sum(p.numel() * p.element_size() for p in self.model.model.parameters()))


def case_of(
    name: str, mode: Mode, all_trained: bool = False, checkpointed: bool | float = False
) -> Case:
    shape = SHAPES[name]
    model = drawn_model(shape, torch.device("cpu"))
    if mode == "bfloat16":
        model.model.to(torch.bfloat16)
    if all_trained:
        model.model.requires_grad_(True)
    if checkpointed:
        checkpoint_layers(model.model, checkpointed)
        model.model.train()
    read = shape_of(model.model.config.to_dict(), name)
    return Case(model, DrawnTokenizer.of(shape), read, mode)


@contextmanager
def saved_bytes(model: TreeModel) -> Iterator[dict[int, int]]:
    """Storages that autograd has saved and still holds, weights apart: address -> bytes."""
    weights = {p.untyped_storage()._cdata for p in model.model.parameters()}
    seen: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in weights and key not in seen:
            seen[key] = storage.nbytes()
            weakref.finalize(storage, seen.pop, key)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        yield seen


# Each shape with each kind of trees, then the settings on one of them.
SAVING: list[tuple[str, str, Mode, Trained, bool | float]] = [
    *((name, work, "float32", "language", False) for name in SHAPES for work in WORKS),
    ("wide", "blocks", "bfloat16", "language", False),
    ("wide", "blocks", "bfloat16", "all", False),
    ("wide", "blocks", "bfloat16", "all", True),
    ("tower", "many pixels", "float32", "all", False),
    ("tiny", "blocks", "float32", "language", True),
    ("tiny", "blocks", "float32", "language", 0.5),
]


@pytest.mark.parametrize(("name", "work", "mode", "trained", "checkpointed"), SAVING)
@pytest.mark.in_turn(
    always=["tiny-blocks-float32-language-True", "tower-blocks-float32-language-False"]
)
def test_what_autograd_saves(
    name: str, work: str, mode: Mode, trained: Trained, checkpointed: bool | float
) -> None:
    case = case_of(name, mode, trained == "all", checkpointed)
    real = WORKS[work].real(case.tokenizer)
    with saved_bytes(case.model) as seen:
        loss = case.run(real, train=True)
        held = sum(seen.values())
    del loss
    pack = WORKS[work].planned()
    text = case.shape.text
    head = pack.answers * (VOCABULARY * 4 + text.hidden * PRECISIONS[mode].compute)
    planned = saved(case.pass_(trained, checkpointed), pack) + head
    assert planned / held == pytest.approx(1, abs=0.2 if checkpointed else 0.03)


ALIVE: list[tuple[str, str, Mode, Trained, bool]] = [
    *((name, work, "float32", "nothing", False) for name in SHAPES for work in WORKS),
    ("tiny", "blocks", "float32", "language", False),
    ("tiny", "blocks", "float32", "language", True),
    ("wide", "blocks", "float32", "language", True),
    ("wide", "blocks", "bfloat16", "language", False),
    ("wide", "blocks", "bfloat16", "language", True),
    ("tower", "many pixels", "bfloat16", "language", False),
    ("tower", "many pixels", "bfloat16", "language", True),
    ("tower", "many pixels", "bfloat16", "nothing", False),
]


@pytest.mark.parametrize(("name", "work", "mode", "trained", "checkpointed"), ALIVE)
@pytest.mark.in_turn(
    always=["tiny-blocks-float32-language-True", "tower-blocks-float32-nothing-False"]
)
def test_what_is_alive_at_the_worst_moment(
    name: str, work: str, mode: Mode, trained: Trained, checkpointed: bool
) -> None:
    case = case_of(name, mode, checkpointed=checkpointed)
    real = WORKS[work].real(case.tokenizer)
    with LiveTensors() as live:
        for weight in case.model.model.parameters():
            live.count(weight)
        loss = case.run(real, train=trained != "nothing")
        if trained != "nothing":
            loss.backward()
    pack = WORKS[work].planned()
    logits = pack.answers * VOCABULARY * 4 * (trained != "nothing")
    planned = passing(case.pass_(trained, checkpointed), pack) + logits + case.weights
    assert planned / live.peak == pytest.approx(1, abs=0.2)


def test_autocast_casts_the_input_of_each_product() -> None:
    case = case_of("wide", "autocast")
    real = BLOCKS.real(case.tokenizer)
    with saved_bytes(case.model) as seen:
        loss = case.run(real, train=True)
        held = sum(seen.values())
    del loss
    pack, text = BLOCKS.planned(), case.shape.text
    trained = [p for p in case.model.model.parameters() if p.requires_grad and p.ndim > 1]
    cast = 2 * sum(p.numel() for p in trained)
    head = pack.answers * (VOCABULARY * 4 + text.hidden * 2)
    planned = saved(case.pass_("language"), pack) + head + cast
    assert planned / held == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("mode", ["float32", "bfloat16"])
def test_keys_and_values_are_counted_exactly(mode: Mode) -> None:
    case = case_of("wide", mode)
    real = BLOCKS.real(case.tokenizer)
    layout = PackedAttention(real, case.model.device, keep=True)
    with torch.inference_mode():
        case.model.hidden(real, layout)
    assert layout.kept is not None
    kept = sum(x.numel() * x.element_size() for pair in layout.kept.values() for x in pair)
    size = PRECISIONS[mode].compute
    assert cache_bytes(case.shape, size) * BLOCKS.planned().tokens == kept
