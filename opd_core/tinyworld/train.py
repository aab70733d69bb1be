"""Trains the tiny teacher and the tiny student from nothing; made the weights in configs/tiny.

Two stages, as large video-language models are made. First the vision tower alone learns to name
what is in view each second, through a linear probe that is thrown away; a tower that starts blind
leaves the language model guessing spans for thousands of steps. Then the whole model learns to
answer, by cross-entropy on the answers' tokens only, the sentences of a video packed as one prefix
tree, helped at first by two losses which show it where to look (`pointing.py`). The teacher is
trained to the end; the student's second stage stops early, while it rises: it sees, it knows the
format, and it still has most of the task to learn from its teacher. The loose student is trained to
the end as well, and then on annotations as people make them (`annotators.py`): it sees, and answers
loosely, as models do that have learned from data of this field. The long teacher begins with the
short one, and the long loose student is that teacher, made loose.

    stage 1   sigmoid cross-entropy of (second, colour and form) on the merged vision tokens
    stage 2   - mean log p(answer token) * answer_weight + pointing losses (fading out)
    stage 3   - mean log p(loose answer's token) * answer_weight; the loose student's alone
    all       AdamW, linear warm-up, cosine decay

`recipes.py` has what made the shipped weights.
"""

from __future__ import annotations

import json
import math
import os
import random
import tempfile
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opd_core import torchvision_guard
from opd_core.engines.base import Request, SamplingParams
from opd_core.engines.hf.sampling import HFEngine
from opd_core.model.architectures import architecture_of
from opd_core.model.prefix_tree import Pack, grow, pack
from opd_core.model.tree_attention import PackedAttention, TreeLayout
from opd_core.model.tree_model import TreeModel, choose_device, load_model
from opd_core.prompts.encoder import PromptEncoder
from opd_core.spans.answer_reader import parse_span
from opd_core.spans.grounding import answer_iou
from opd_core.tinyworld.data import NAMES, TinyVideo, load_split, loosely_annotated
from opd_core.tinyworld.frames_attention import frames_together
from opd_core.tinyworld.models import build_model, build_processor, parameters, save_model
from opd_core.tinyworld.pointing import ListeningAttention, Pointing
from opd_core.tinyworld.recipes import RECIPES, Recipe
from opd_core.tinyworld.scenes import SCENES
from opd_core.tinyworld.world import make_world
from opd_core.types import Span

Report = Callable[[str], None]
"""Called with one line of progress."""


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Greedy answers against the truth, unrounded; shares count IoU >= threshold."""

    sentences: int
    miou: float
    recall_30: float
    recall_50: float
    recall_70: float


def train(
    name: str,
    out: Path | str,
    *,
    steps: int | None = None,
    seed: int | None = None,
    lr: float | None = None,
    settings: Recipe | None = None,
    world: Path | str | None = None,
    shipped: Path = Path("configs/tiny"),
    threads: int = 1,
    device: str = "cpu",
    report: Report | None = None,
) -> dict[str, Any]:
    """Trains the model of a name in `RECIPES`; writes its checkpoint and `TRAINING.json` to `out`.

    `steps`, `seed` and `lr` override `settings`, which default to `RECIPES[name]`. `world` is a
    folder to make (or find) the training videos in, by default a temporary one; in `shipped` lies
    the model that this one begins with, if any. `device` is where the model is trained; it is
    measured on the CPU. Returns the content of `TRAINING.json`:
    settings, numbers, and the accuracy of the weights as read back from disk. Nothing in `out` is
    touched before the training is through.
    """
    torchvision_guard.install()
    torch.set_num_threads(threads)
    say = report or (lambda _: None)
    place = choose_device(device)
    chosen = settings or RECIPES[name]
    overrides: dict[str, Any] = {"steps": steps, "seed": seed, "lr": lr}
    chosen = replace(chosen, **{k: v for k, v in overrides.items() if v is not None})
    began = time.monotonic()
    out = Path(out)
    scene = SCENES[chosen.scene]
    processor = build_processor(scene)
    model = build_model(chosen.size, processor.tokenizer, chosen.seed)
    if chosen.begins_with is not None:
        begun_with = load_model(shipped / chosen.begins_with, "float32")
        model.load_state_dict(begun_with.state_dict())
    model.to(place)
    with tempfile.TemporaryDirectory() as scratch:
        processor.save_pretrained(scratch)
        model.config.save_pretrained(scratch)
        encoder = PromptEncoder(Path(scratch))
        root = Path(world) if world else Path(scratch) / "world"
        train_set, eval_set = _load_world(root, chosen, encoder, say)
        loose_set = loosely_annotated(train_set, chosen.world_seed, scene, encoder)
    prepared = time.monotonic()
    order = random.Random(chosen.seed)
    family = architecture_of(model.config)
    with frames_together(family.module(model, family.vision)):
        learn_to_see(model, train_set, chosen, order, say)
        loss = learn_to_answer(model, encoder.tokenizer, train_set, chosen, order, say)
        if chosen.loose_steps:
            loss = learn_looseness(model, encoder.tokenizer, loose_set, chosen, order, say)
    save_model(model, processor, out)
    seconds = time.monotonic() - prepared
    accuracy = measure(out, encoder, eval_set)
    say(f"{name}: mIoU {accuracy.miou:.3f}, R1@0.5 {accuracy.recall_50:.3f} from the saved weights")
    result = {
        "command": _command(name, chosen),
        "role": chosen.size,
        "parameters": parameters(model),
        "settings": asdict(chosen),
        "final_loss": round(loss, 4),
        "eval": {k: round(v, 4) for k, v in asdict(accuracy).items()},
        "seconds_preparing": round(prepared - began, 1),
        "seconds_training": round(seconds, 1),
        "machine": {
            "cores": os.cpu_count(),
            "threads": threads,
            "device": torch.cuda.get_device_name(place) if place.type == "cuda" else str(place),
            "torch": torch.__version__,
        },
    }
    (out / "TRAINING.json").write_text(json.dumps(result, indent=2) + "\n")
    return result


def _command(name: str, chosen: Recipe) -> str:
    """The command line that gives these settings again."""
    default = RECIPES[name]
    options = [
        f"--{option} {getattr(chosen, option)}"
        for option in ("steps", "seed", "lr")
        if getattr(chosen, option) != getattr(default, option)
    ]
    return " ".join(["videoopd tinyworld train", name, f"--out configs/tiny/{name}", *options])


def _load_world(
    root: Path, chosen: Recipe, encoder: PromptEncoder, say: Report
) -> tuple[list[TinyVideo], list[TinyVideo]]:
    def every_500(what: str) -> Callable[[int, int], None]:
        return lambda done, total: (
            say(f"{what}: {done} of {total} videos") if done % 500 == 0 else None
        )

    seed, scene = chosen.world_seed, SCENES[chosen.scene]
    world = make_world(
        root, seed, chosen.train_videos, chosen.eval_videos, every_500("draw"), scene=chosen.scene
    )
    train_set = load_split(world, "train", seed, scene, encoder, every_500("encode"))
    return train_set, load_split(world, "eval", seed, scene, encoder)


def learn_to_see(
    model: Any,
    videos: Sequence[TinyVideo],
    chosen: Recipe,
    order: random.Random,
    say: Report,
) -> None:
    """Stage 1: the vision tower learns which shapes are in view in each second."""
    family = architecture_of(model.config)
    tower = family.module(model, family.vision)
    width = family.vision_settings(model.config).out_hidden_size
    probe = nn.Linear(width, len(NAMES)).to(model.device)
    optimiser = _adamw([*tower.parameters(), *probe.parameters()], chosen)
    losses: list[Tensor] = []
    for step in range(chosen.vision_steps):
        batch = order.sample(range(len(videos)), chosen.vision_videos_per_step)
        picked = [videos[i] for i in batch]
        seen = tower(_patches(picked, model.device), grid_thw=_grids(picked, model.device))
        truth = torch.cat([v.in_view for v in picked]).to(model.device).float()
        loss = F.binary_cross_entropy_with_logits(probe(seen.pooler_output), truth)
        for features in seen.deepstack_features:
            loss = loss + 0.3 * F.binary_cross_entropy_with_logits(probe(features), truth)
        rate = _rate(step, chosen.vision_lr, chosen.warmup, chosen.vision_steps)
        _update(optimiser, loss, rate, chosen)
        losses.append(loss.detach())
        if (step + 1) % 50 == 0:
            say(f"see {step + 1}/{chosen.vision_steps}: loss {_last_50(losses):.4f}")


def learn_to_answer(
    model: Any,
    tokenizer: Any,
    videos: Sequence[TinyVideo],
    chosen: Recipe,
    order: random.Random,
    say: Report,
) -> float:
    """Stage 2: the whole model learns to answer. Returns the mean loss of the last 50 steps."""
    trees = TreeModel(model, tokenizer)
    pointing = Pointing(model, tokenizer, chosen.inside_layer, SCENES[chosen.scene].seconds)
    pointing.to(model.device)
    family = architecture_of(model.config)
    tower = list(family.module(model, family.vision).parameters())
    in_tower = {id(weight) for weight in tower}
    others = [w for w in model.parameters() if id(w) not in in_tower] + list(pointing.parameters())
    optimiser = _adamw(others, chosen)
    optimiser.add_param_group({"params": tower, "relative": chosen.vision_rate})
    losses: list[Tensor] = []
    batches = _batches(len(videos), chosen.videos_per_step, order)
    for step in range(chosen.steps):
        batch = [videos[i] for i in next(batches)]
        packed = pack_answers(batch)
        attention = ListeningAttention(PackedAttention(packed, trees.device), pointing.last_layer)
        answer = answer_loss(trees, packed, attention)
        spans: dict[Hashable, Span] = {
            (v, i): q.span for v, vid in enumerate(batch) for i, q in enumerate(vid.questions)
        }
        fade = max(0.1, 1.0 - step / chosen.pointing_steps)
        hint = pointing.loss(packed, attention, spans)
        rate = _rate(step, chosen.lr, chosen.warmup, chosen.horizon)
        _update(optimiser, chosen.answer_weight * answer + fade * hint, rate, chosen)
        losses.append(answer.detach())
        if (step + 1) % 50 == 0:
            say(
                f"answer {step + 1}/{chosen.steps}: loss {_last_50(losses):.4f}, "
                f"pointing {hint.item():.3f}"
            )
    pointing.close()
    return _last_50(losses)


def learn_looseness(
    model: Any,
    tokenizer: Any,
    videos: Sequence[TinyVideo],
    chosen: Recipe,
    order: random.Random,
    say: Report,
) -> float:
    """Stage 3: the whole model learns the answers of loose annotations, without being shown where
    to look. Returns the mean loss of the last 50 steps."""
    trees = TreeModel(model, tokenizer)
    optimiser = _adamw(list(model.parameters()), chosen)
    losses: list[Tensor] = []
    batches = _batches(len(videos), chosen.videos_per_step, order)
    for step in range(chosen.loose_steps):
        packed = pack_answers([videos[i] for i in next(batches)])
        answer = answer_loss(trees, packed, PackedAttention(packed, trees.device))
        rate = _rate(step, chosen.loose_lr, chosen.warmup, chosen.loose_steps)
        _update(optimiser, chosen.answer_weight * answer, rate, chosen)
        losses.append(answer.detach())
        if (step + 1) % 50 == 0:
            say(f"loosen {step + 1}/{chosen.loose_steps}: loss {_last_50(losses):.4f}")
    return _last_50(losses)


def pack_answers(videos: Sequence[TinyVideo]) -> Pack:
    """One prefix tree a video; completion keys are (place of the video, place of the question)."""
    trees = []
    for v, video in enumerate(videos):
        vision = video.questions[0].prompt.vision
        trees.append(
            grow(
                [q.prompt.token_ids for q in video.questions],
                [[((v, i), q.answer_ids)] for i, q in enumerate(video.questions)],
                replace(vision, patches=vision.patches.float()),
            )
        )
    return pack(trees)


def answer_loss(trees: TreeModel, packed: Pack, attention: TreeLayout) -> Tensor:
    """Mean negative log-probability of the answers' tokens (nats a token)."""
    chosen = [
        log_probs_CV.gather(1, token_ids_C[:, None])[:, 0]
        for _, token_ids_C, log_probs_CV in trees.completion_distributions(packed, attention)
    ]
    return -torch.cat(chosen).mean()


def measure(
    folder: Path, encoder: PromptEncoder, videos: Sequence[TinyVideo], batch: int = 40
) -> Accuracy:
    """Greedy decoding by the pipeline's own engine, from the files in `folder`, in fp32."""
    engine = HFEngine.load(folder, encoder.tokenizer, "float32", "cpu")
    params = SamplingParams(max_new_tokens=24, greedy=True)
    ious: list[float] = []
    for first in range(0, len(videos), batch):
        part = videos[first : first + batch]
        requests = [
            [Request((v, i), q.prompt, (0,)) for i, q in enumerate(video.questions)]
            for v, video in enumerate(part)
        ]
        samples = engine.sample(requests, params)
        for v, video in enumerate(part):
            for i, question in enumerate(video.questions):
                text = encoder.decode(samples[v, i][0].token_ids)
                ious.append(answer_iou(parse_span(text), question.span))
    shares = [_mean([float(iou >= threshold) for iou in ious]) for threshold in (0.3, 0.5, 0.7)]
    return Accuracy(len(ious), _mean(ious), *shares)


def _patches(videos: Sequence[TinyVideo], device: torch.device) -> Tensor:
    return torch.cat([v.questions[0].prompt.vision.patches for v in videos]).to(device).float()


def _grids(videos: Sequence[TinyVideo], device: torch.device) -> Tensor:
    return torch.tensor([v.questions[0].prompt.vision.grid_thw for v in videos], device=device)


def _batches(items: int, size: int, order: random.Random) -> Iterator[list[int]]:
    """Endless batches of distinct indices; a rest shorter than a batch is left out."""
    waiting: list[int] = []
    while True:
        if len(waiting) < size:
            waiting = order.sample(range(items), items)
        yield [waiting.pop() for _ in range(size)]


def _adamw(weights: Sequence[nn.Parameter], chosen: Recipe) -> torch.optim.Optimizer:
    return torch.optim.AdamW(weights, betas=(0.9, 0.98), weight_decay=chosen.weight_decay)


def _rate(step: int, peak: float, warmup: int, horizon: int) -> float:
    """Linear warm-up, then a cosine from the peak to 2 % of it at `horizon`."""
    cosine = 0.5 + 0.5 * math.cos(math.pi * min(1.0, step / horizon))
    return peak * min(1.0, (step + 1) / warmup) * max(0.02, cosine)


def _update(optimiser: torch.optim.Optimizer, loss: Tensor, rate: float, chosen: Recipe) -> None:
    """One clipped step; a parameter group's own "relative" scales the rate."""
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    for group in optimiser.param_groups:
        group["lr"] = rate * group.get("relative", 1.0)
    weights = [weight for group in optimiser.param_groups for weight in group["params"]]
    nn.utils.clip_grad_norm_(weights, chosen.max_grad_norm)
    optimiser.step()


def _last_50(losses: Sequence[Tensor]) -> float:
    """Their mean; losses stay on their device until somebody wants to see them."""
    return float(torch.stack(tuple(losses[-50:])).mean()) if losses else math.nan


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
