"""Sample, score and update of one shape, as a tree and as separate sequences: seconds, tokens a
second, MFU and peak memory.

One prompt of 8,192 video tokens with 8 rollouts of 20 tokens. What an FLOP is: those that the
mathematics needs of the language model (its matrices, the head on completion rows, attention over
the pairs that a token may see), three times of them for an update; what checkpointing computes
again is not counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from flows.bench.drawn import DrawnTokenizer, Shape, drawn_model, drawn_prompt
from flows.bench.interleaved import Row, at_least
from opd_core.engines.base import Request, SamplingParams
from opd_core.engines.hf.sampling import HFEngine
from opd_core.model.architectures import QWEN3_VL
from opd_core.model.prefix_tree import PrefixTree, grow, pack
from opd_core.model.tree_model import TreeModel
from opd_core.update import objectives
from opd_core.update.checkpointing import checkpoint_layers

ROLLOUTS, ANSWER, SENTENCE = 8, 20, 64
TREES = 3
"""Run one after the other, as a stage does: the inputs of one are brought during another."""
SIDE = 8
"""A frame is 8 x 8 vision tokens."""
PEAK_BF16_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense, from the vendor's data sheets; MFU is left out for a chip that is not here."""
WHAT = {
    "seconds": f"seconds of a tree of {ROLLOUTS} rollouts",
    "mfu": "MFU of the language model",
    "ratio": f"{ROLLOUTS} separate sequences / tree",
    "prompts": f"{ROLLOUTS} prompts one by one / {ROLLOUTS} rollouts of one prompt",
}
TREE, MFU = 7.0, 40.0
"""What is promised of one prompt with 8 rollouts: x, and % of the card's peak."""


def speed_rows(
    shape: Shape, device: torch.device, video_tokens: int, repetitions: int
) -> Iterator[Row]:
    """Two rows for each of score, update and sample."""
    model = drawn_model(shape, device)
    case = Case.of(shape, model, video_tokens)
    trees = [case.tree] * TREES
    stages = (
        Stage("score", lambda: score(model, trees), lambda: score(model, case.apart), 1),
        Stage("update", lambda: update(model, trees), lambda: update(model, case.apart), 3),
        Stage(
            "update, half of the layers checkpointed", lambda: update(model, trees), None, 3, 0.5
        ),
    )
    for stage in stages:
        model.model.train(stage.passes == 3)
        checkpoint_layers(model.model, stage.checkpointed)
        fast = measure(stage.tree, model, repetitions, among=TREES)
        mfu = fast.mfu(stage.passes * flops(model, case.tree))
        yield Row(
            name_of(shape, video_tokens, stage.name, "seconds"), fast.seconds, "s",
            "measured", None,
            {"device": device_name(device), "tokens": case.tree.tokens,
             "tokens a second": case.tree.tokens / fast.seconds,
             "seconds in the vision tower": fast.vision_seconds, "peak GiB": fast.peak_gib,
             "first call, seconds": fast.first_seconds},
        )  # fmt: skip
        if mfu is not None:
            yield at_least(
                name_of(shape, video_tokens, stage.name, "mfu"), mfu[0], MFU, unit=" %",
                with_the_time_of_vision=mfu[1],
            )  # fmt: skip
        if stage.apart is None:
            continue
        slow = measure(stage.apart, model, 1, warm=stage.tree)
        ratio = at_least(
            name_of(shape, video_tokens, stage.name, "ratio"),
            slow.seconds / fast.seconds, TREE,
            separate_seconds=slow.seconds, separate_peak_gib=slow.peak_gib,
        )  # fmt: skip
        yield ratio if mfu else replace(ratio, target="not of this device", met=None)
    model.model.eval()
    yield _sampling(shape, video_tokens, model, case)


def name_of(shape: Shape, video_tokens: int, stage: str, what: str) -> str:
    """The name of a row."""
    return f"{shape.name}, {video_tokens} video tokens, {stage}: {WHAT[what]}"


def _sampling(shape: Shape, video_tokens: int, model: TreeModel, case: Case) -> Row:
    engine = HFEngine(model, DrawnTokenizer.of(shape))
    params = SamplingParams(ANSWER)

    def sample(groups: Sequence[Sequence[int]]) -> object:
        return engine.sample([[Request(str(g), case.prompt, tuple(g))] for g in groups], params)

    model.model.zero_grad(set_to_none=True)
    everyone = range(ROLLOUTS)
    fast = measure(lambda: sample([everyone]), model, 1)
    batch = measure(lambda: sample([[i] for i in everyone]), model, 1, warm=lambda: sample([[0]]))
    slow = measure(lambda: [sample([[i]]) for i in everyone], model, 1, warm=lambda: sample([[0]]))
    return Row(
        name_of(shape, video_tokens, "sample", "prompts"),
        slow.seconds / fast.seconds, "x", "measured", None,
        {"device": device_name(model.device), "rollouts of one prompt, seconds": fast.seconds,
         "prompts in a batch, one rollout each, seconds": batch.seconds,
         "prompts one by one, seconds": slow.seconds,
         "answer tokens a second, one prompt": ROLLOUTS * ANSWER / fast.seconds,
         "answer tokens a second, a batch": ROLLOUTS * ANSWER / batch.seconds,
         "seconds in the vision tower": fast.vision_seconds,
         "peak GiB, one prompt": fast.peak_gib, "peak GiB, a batch": batch.peak_gib},
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Stage:
    name: str
    tree: Callable[[], None]
    """Runs `TREES` trees."""
    apart: Callable[[], None] | None
    """Runs the rollouts of one as sequences."""
    passes: int
    """What an FLOP of its forward pass counts."""
    checkpointed: float = 1.0


@dataclass(frozen=True, slots=True)
class Case:
    """One prompt and its rollouts, both ways."""

    prompt: Any
    tree: PrefixTree
    apart: list[PrefixTree]

    @classmethod
    def of(cls, shape: Shape, model: TreeModel, video_tokens: int) -> Case:
        tokenizer = DrawnTokenizer.of(shape)
        prompt = drawn_prompt(tokenizer, video_tokens // SIDE**2, SIDE, SENTENCE, seed=0)
        generator = torch.Generator().manual_seed(1)
        answers = [(i, tokenizer.draw(ANSWER, generator)) for i in range(ROLLOUTS)]
        return cls(
            prompt,
            grow([prompt.token_ids], [answers], prompt.vision),
            [grow([prompt.token_ids], [[answer]], prompt.vision) for answer in answers],
        )


def score(model: TreeModel, trees: Sequence[PrefixTree]) -> None:
    with torch.inference_mode():
        for inputs in model.ahead(pack([one]) for one in trees):
            for _, token_ids_C, logprobs_CV in model.completion_distributions(inputs):
                logprobs_CV.gather(1, token_ids_C[:, None]).sum().item()


def update(model: TreeModel, trees: Sequence[PrefixTree]) -> None:
    """Gradients of a policy-gradient loss; the optimiser's step is not of these rows."""
    model.model.zero_grad(set_to_none=True)
    for inputs in model.ahead(pack([one]) for one in trees):
        loss = torch.zeros((), device=model.device)
        for _, token_ids_C, logprobs_CV in model.completion_distributions(inputs):
            chosen_C = logprobs_CV.gather(1, token_ids_C[:, None])[:, 0]
            old_C = chosen_C.detach()
            loss = loss + objectives.policy_gradient(chosen_C, old_C, old_C - 0.5).sum()
        loss.backward()


def flops(model: TreeModel, tree: PrefixTree) -> float:
    """Of a forward pass of the language model over a tree."""
    text = QWEN3_VL.module(model.model, QWEN3_VL.text)
    settings = QWEN3_VL.text_settings(model.model.config)
    matrices = sum(m.weight.numel() for m in text.modules() if isinstance(m, nn.Linear))
    ends = pack([tree]).last_descendants()
    pairs = int((ends - range(len(ends))).sum())
    attention = settings.num_hidden_layers * settings.num_attention_heads * settings.head_dim
    rows = sum(len(s.token_ids) for s in tree.segments if s.key is not None)
    head = rows * settings.vocab_size * settings.hidden_size
    return float(2 * (matrices * tree.tokens + head) + 4 * attention * pairs)


@dataclass(frozen=True, slots=True)
class Speed:
    seconds: float
    """Median."""
    first_seconds: float
    """Of the unmeasured first call, which compiles."""
    vision_seconds: float
    """Of `seconds`, in the vision tower."""
    peak_gib: float | None
    device: torch.device

    def mfu(self, needed: float) -> tuple[float, float] | None:
        """% of the card's peak: of the time outside the vision tower, and of all."""
        peak = next((v for k, v in PEAK_BF16_FLOPS.items() if k in device_name(self.device)), None)
        if peak is None:
            return None
        language = self.seconds - self.vision_seconds
        return 100 * needed / language / peak, 100 * needed / self.seconds / peak


def measure(
    call: Callable[[], object],
    model: TreeModel,
    repetitions: int,
    warm: Callable[[], object] | None = None,
    among: int = 1,
) -> Speed:
    """The median of some calls, after one of it, or of `warm`, that is not counted; seconds are
    divided `among` what a call does."""
    cuda = model.device.type == "cuda"
    whole: list[float] = []
    vision: list[float] = []
    for turn in range(repetitions + 1):
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        _wait(model.device)
        with _vision_watched(model) as spans:
            began = time.perf_counter()
            (call if turn or warm is None else warm)()
            _wait(model.device)
            whole.append(time.perf_counter() - began)
        vision.append(sum(seconds() for seconds in spans))
    median = sorted(range(1, len(whole)), key=whole.__getitem__)[(len(whole) - 1) // 2]
    peak = torch.cuda.max_memory_allocated() / 2**30 if cuda else None
    return Speed(whole[median] / among, whole[0], vision[median] / among, peak, model.device)


@contextmanager
def _vision_watched(model: TreeModel) -> Iterator[list[Callable[[], float]]]:
    """Meanwhile each pass of the vision tower adds what gives its seconds."""
    tower = QWEN3_VL.module(model.model, QWEN3_VL.vision)
    spans: list[Callable[[], float]] = []
    marks: list[Any] = []

    def begins(*_: object) -> None:
        marks.append(_mark(model.device))

    def ends(*_: object) -> None:
        first, last = marks.pop(), _mark(model.device)
        if model.device.type == "cuda":
            spans.append(lambda: first.elapsed_time(last) / 1000)
        else:
            spans.append(lambda: last - first)

    hooks = [tower.register_forward_pre_hook(begins), tower.register_forward_hook(ends)]
    try:
        yield spans
    finally:
        for hook in hooks:
            hook.remove()


def _mark(device: torch.device) -> Any:
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
