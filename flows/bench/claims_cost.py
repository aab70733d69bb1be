"""What a step of Video-OPD with one rollout costs beside one of GRPO with eight, both ways.

    videoopd bench claims-cost

A step: answers are sampled, judged (by a teacher of four times the student's parameters, or by
rewards) and trained on. "Separate sequences" is what published systems do: each of the eight
rollouts is a request and a training sequence of its own, prompt and video included. "Prefix trees"
is what this project does. Both ways are the same code on the same tokens; only what shares a prompt
differs, so with one rollout a prompt they are one and the same, and measured once.

Student and teacher are drawn from a seed, with the relations of Qwen3-VL-8B and -32B: 1.75 times
the layers, twice the heads, 1.25 times the width, one vision tower. GRPO has no reference model and
no second pass for old log-probs, which would cost it more. Its rewards are drawn too: to read eight
answers takes microseconds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from flows.bench.drawn import BESIDE_A_FRAME, DrawnTokenizer, Shape, drawn_model, drawn_prompt
from flows.bench.interleaved import Row, medians
from opd_core.config.sections import GRPOSection, ScoreSection
from opd_core.engines.base import Request, Sample, SamplingParams, ScoreRequest
from opd_core.engines.hf.sampling import HFEngine
from opd_core.model.prefix_tree import fill, grow, pack
from opd_core.prompts.encoder import EncodedPrompt
from opd_core.update import objectives

PUBLISHED = "the paper: a fifth"
ROLLOUTS, ANSWER = 8, 16
"""An answer is as long as the task's, "The event happens in 12.0 - 15.5 seconds"."""
PROMPTS = {150: 16, 1280: 2, 4096: 1}
"""Tokens of a prompt -> prompts of a step: few, for one core; what is told is seconds a prompt."""
SIDE, SENTENCE = 4, 36
"""A frame is 4 x 4 vision tokens; the sentence that is asked after has at least 36 tokens."""
TOKENS_PER_PACK = 8192
"""Of a forward pass, sampled, scored or trained, either way: what bounds the memory."""

_TEXT: dict[str, Any] = {
    "vocab_size": 512, "head_dim": 32, "num_key_value_heads": 2, "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [6, 5, 5]},
}  # fmt: skip
_VISION: dict[str, Any] = {
    "depth": 2, "hidden_size": 48, "intermediate_size": 96, "num_heads": 2,
    "num_position_embeddings": 64, "deepstack_visual_indexes": [0],
}  # fmt: skip
STUDENT = Shape(
    "student",
    {**_TEXT, "hidden_size": 192, "intermediate_size": 576, "num_hidden_layers": 4,
     "num_attention_heads": 6},
    {**_VISION, "out_hidden_size": 192},
)  # fmt: skip
TEACHER = Shape(
    "teacher",
    {**_TEXT, "hidden_size": 240, "intermediate_size": 1328, "num_hidden_layers": 7,
     "num_attention_heads": 12},
    {**_VISION, "out_hidden_size": 240},
)  # fmt: skip

Key = tuple[int, int]
"""Of an answer: its prompt and its number there."""
Judge = Literal["teacher", "rewards"]
ByToken = Mapping[Hashable, Sequence[float]]
"""Key of an answer -> a number for each of its tokens."""
STAGES = ("sample", "judge", "update")


@dataclass(frozen=True, slots=True)
class _Group:
    """A prompt and the answers that share it: one prefill, one tree."""

    prompt: EncodedPrompt
    keys: tuple[Key, ...]


@dataclass(frozen=True, slots=True)
class Step:
    seconds: dict[str, float]
    """Of each of `STAGES`."""
    answers: dict[Key, tuple[int, ...]]
    loss: float
    grad_norm: float


class Trainer:
    """A student and its teacher, and one step of either method in either way."""

    def __init__(self) -> None:
        device = torch.device("cpu")
        self._tokenizer = DrawnTokenizer.of(STUDENT)
        self.student, self.teacher = (drawn_model(shape, device) for shape in (STUDENT, TEACHER))
        self._sampler, self._scorer = (
            HFEngine(model, self._tokenizer, TOKENS_PER_PACK, TOKENS_PER_PACK)
            for model in (self.student, self.teacher)
        )
        self._trainable = [p for p in self.student.model.parameters() if p.requires_grad]
        # A rate of 0 costs what any other does, and each turn has the same weights before it.
        self._optimizer = torch.optim.AdamW(self._trainable, lr=0.0)

    @property
    def times_the_student(self) -> float:
        """The teacher's parameters over the student's."""
        student, teacher = (
            sum(int(p.numel()) for p in model.model.parameters())
            for model in (self.student, self.teacher)
        )
        return teacher / student

    def prompts(self, tokens: int, count: int) -> list[EncodedPrompt]:
        """Prompts of so many tokens, each of a video of its own."""
        frames, left_over = divmod(tokens - SENTENCE, SIDE**2 + BESIDE_A_FRAME)
        return [
            drawn_prompt(self._tokenizer, frames, SIDE, SENTENCE + left_over, seed)
            for seed in range(count)
        ]

    def step(
        self, prompts: Sequence[EncodedPrompt], rollouts: int, judge: Judge, shared: bool
    ) -> Step:
        """One step of `rollouts` answers to each prompt, which share it or repeat it."""
        by_prompt = [
            _Group(prompt, tuple((p, r) for r in range(rollouts)))
            for p, prompt in enumerate(prompts)
        ]
        apart = [_Group(g.prompt, (key,)) for g in by_prompt for key in g.keys]
        groups = by_prompt if shared else apart
        began = time.perf_counter()
        answers = self._sampled(groups)
        sampled = time.perf_counter()
        judged = (
            self._teacher_logprobs(groups, answers)
            if judge == "teacher"
            else _advantages(by_prompt)
        )
        scored = time.perf_counter()
        loss, grad_norm = self._updated(groups, answers, judge, judged)
        seconds = {
            "sample": sampled - began,
            "judge": scored - sampled,
            "update": time.perf_counter() - scored,
        }
        return Step(seconds, {k: a.token_ids for k, a in answers.items()}, loss, grad_norm)

    def _sampled(self, groups: Sequence[_Group]) -> dict[Key, Sample]:
        requests = [
            [Request(i, group.prompt, tuple(p * ROLLOUTS + r for p, r in group.keys))]
            for i, group in enumerate(groups)
        ]
        samples = self._sampler.sample(requests, SamplingParams(ANSWER))
        return {
            key: sample
            for i, group in enumerate(groups)
            for key, sample in zip(group.keys, samples[i], strict=True)
        }

    def _teacher_logprobs(self, groups: Sequence[_Group], answers: dict[Key, Sample]) -> ByToken:
        requests = [
            [ScoreRequest(i, group.prompt, {key: answers[key].token_ids for key in group.keys})]
            for i, group in enumerate(groups)
        ]
        scores = self._scorer.score(requests, ScoreSection(teacher_topk=0))
        return {key: scored.logprobs for key, scored in scores}

    def _updated(
        self, groups: Sequence[_Group], answers: dict[Key, Sample], judge: Judge, judged: ByToken
    ) -> tuple[float, float]:
        """Loss and gradient norm of the optimiser's step."""
        self._optimizer.zero_grad(set_to_none=True)
        old: ByToken = {key: answer.logprobs for key, answer in answers.items()}
        trees = [
            grow(
                [group.prompt.token_ids],
                [[(key, answers[key].token_ids) for key in group.keys]],
                group.prompt.vision,
            )
            for group in groups
        ]
        whole = 0.0
        for part in fill(trees, TOKENS_PER_PACK):
            loss = torch.zeros(())
            for keys, ids_C, logprobs_CV in self.student.completion_distributions(pack(part)):
                chosen_C = logprobs_CV.gather(1, ids_C[:, None])[:, 0]
                losses_C = _losses(judge, chosen_C, _joined(old, keys), _joined(judged, keys))
                loss = loss + losses_C.sum() / (len(answers) * ANSWER)
            loss.backward()
            whole += float(loss.detach())
        norm = nn.utils.clip_grad_norm_(self._trainable, max_norm=1.0)
        self._optimizer.step()
        return whole, float(norm)


def _losses(judge: Judge, chosen_C: Tensor, old_C: Tensor, judged_C: Tensor) -> Tensor:
    if judge == "teacher":
        return objectives.policy_gradient(chosen_C, old_C, judged_C)
    grpo = GRPOSection()
    return objectives.grpo(chosen_C, old_C, judged_C, grpo.clip_low, grpo.clip_high)


def _joined(by_token: ByToken, keys: Sequence[Hashable]) -> Tensor:
    return torch.tensor([value for key in keys for value in by_token[key]])


def _advantages(groups: Sequence[_Group]) -> ByToken:
    """Of drawn rewards, each answer among those to its prompt."""
    generator = torch.Generator().manual_seed(0)
    advantages: dict[Hashable, Sequence[float]] = {}
    for group in groups:
        rewards = torch.rand(len(group.keys), generator=generator).tolist()
        of_group = objectives.group_advantages(rewards, GRPOSection().scale_by_std)
        advantages |= {key: [a] * ANSWER for key, a in zip(group.keys, of_group, strict=True)}
    return advantages


OPD, SEPARATE, TREES = "OPD-1", "GRPO-8, separate sequences", "GRPO-8, prefix trees"
STEPS: dict[str, tuple[int, Judge, bool]] = {
    OPD: (1, "teacher", True),
    SEPARATE: (ROLLOUTS, "rewards", False),
    TREES: (ROLLOUTS, "rewards", True),
}


def claims_cost_rows(lengths: Mapping[int, int] = PROMPTS, repetitions: int = 3) -> Iterator[Row]:
    """OPD-1 over GRPO-8, for each length of prompt and either way."""
    trainer = Trainer()
    for tokens, count in lengths.items():
        yield from _measured(trainer, tokens, trainer.prompts(tokens, count), repetitions)


def _measured(
    trainer: Trainer, tokens: int, prompts: Sequence[EncodedPrompt], repetitions: int
) -> Iterator[Row]:
    done: dict[str, list[Step]] = {name: [] for name in STEPS}

    def turn(name: str) -> None:
        done[name].append(trainer.step(prompts, *STEPS[name]))

    seconds = medians({name: partial(turn, name) for name in STEPS}, repetitions)
    stages = {
        name: {stage: statistics.median(s.seconds[stage] for s in steps[1:]) for stage in STAGES}
        for name, steps in done.items()
    }
    cached = sum((stages[SEPARATE] | {"sample": stages[TREES]["sample"]}).values())
    for way, name in (("separate sequences", SEPARATE), ("prefix trees", TREES)):
        of_way = {OPD: seconds[OPD], name: seconds[name]}
        details: dict[str, Any] = {
            "seconds a prompt": {n: s / len(prompts) for n, s in of_way.items()},
            "of which": {
                n: {stage: s / len(prompts) for stage, s in stages[n].items()} for n in of_way
            },
            "prompts of a step": len(prompts),
            "teacher's parameters over the student's": trainer.times_the_student,
        }
        if name == SEPARATE:
            details["the same where sampling has a prefix cache"] = seconds[OPD] / cached
        yield Row(
            f"a step at {tokens:,} prompt tokens, {way}: OPD-1 / GRPO-8",
            seconds[OPD] / seconds[name], "x", PUBLISHED, None, details,
        )  # fmt: skip
