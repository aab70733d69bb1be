"""Prefix trees against separate sequences: seconds, forwards, memory.

The prompt is 1,280 tokens (a video of 1,244 and a sentence of 36) and an answer 20, the ratio of
64 to 1 that long videos have; the model has the tiny teacher's shape and random weights, because
time does not depend on them. "Separate" is plain transformers, one causal sequence at a time.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flows.bench.interleaved import Row, at_least, at_most, medians
from opd_core import torchvision_guard
from opd_core.engines.base import Request, SamplingParams
from opd_core.engines.hf.sampling import HFEngine
from opd_core.model.architectures import QWEN3_VL
from opd_core.model.prefix_tree import grow, pack
from opd_core.model.tree_model import TreeModel
from opd_core.model.vision_input import VisionInput
from opd_core.prompts.encoder import EncodedPrompt
from opd_core.update import objectives

PROMPT, SENTENCE, ANSWER = 1280, 36, 20
FRAMES = 40


@dataclass(frozen=True, slots=True)
class Case:
    prompts: list[list[int]]
    answers: list[list[tuple[Any, list[int]]]]
    vision: VisionInput


class Models:
    """The same weights twice: once for trees, once for plain transformers."""

    def __init__(self, vocabulary: int | None = None) -> None:
        torchvision_guard.install()
        from opd_core.tinyworld.models import build_model, build_processor

        self.tokenizer = build_processor().tokenizer
        self.plain = build_model("teacher", self.tokenizer, 0).float().eval()
        ours = build_model("teacher", self.tokenizer, 0).float().eval()
        if vocabulary is not None:
            for model in (self.plain, ours):
                model.resize_token_embeddings(vocabulary)
        for model in (self.plain, ours):
            QWEN3_VL.freeze_vision(model)
        self.tree = TreeModel(ours, self.tokenizer)
        self.video_id = self.tokenizer.convert_tokens_to_ids("<|video_pad|>")

    def case(self, sentences: int, rollouts: int, prompt: int = PROMPT) -> Case:
        generator = torch.Generator().manual_seed(0)

        def words(count: int) -> list[int]:
            return torch.randint(0, 256, (count,), generator=generator).tolist()

        start, end = self.tokenizer.convert_tokens_to_ids(["<|vision_start|>", "<|vision_end|>"])
        pads = (prompt - SENTENCE - 5 * FRAMES) // FRAMES
        video = [t for _ in range(FRAMES) for t in [*words(3), start, *[self.video_id] * pads, end]]
        video = words(prompt - SENTENCE - len(video)) + video
        patches = torch.randn(FRAMES * 4 * pads, 1536, generator=generator)
        answers = [[((s, r), words(ANSWER)) for r in range(rollouts)] for s in range(sentences)]
        prompts = [video + words(SENTENCE) for _ in range(sentences)]
        return Case(prompts, answers, VisionInput(patches, (FRAMES, 2, 2 * pads), 1.0))

    def run_tree(self, case: Case, train: bool) -> int:
        """One pass (and backward) over the tree; returns its tokens."""
        packed = pack([grow(case.prompts, case.answers, case.vision)])
        loss = torch.zeros(())
        for _, token_ids_C, logprobs_CV in self.tree.completion_distributions(packed):
            loss = loss + _loss(logprobs_CV.gather(1, token_ids_C[:, None])[:, 0])
        if train:
            self.tree.model.zero_grad()
            loss.backward()
        return packed.tokens

    def run_separately(self, case: Case, train: bool) -> int:
        tokens = 0
        if train:
            self.plain.zero_grad()
        for prompt, answers in zip(case.prompts, case.answers, strict=True):
            for _, answer in answers:
                whole = torch.tensor([[*prompt, *answer]])
                tokens += whole.shape[1]
                hidden = self.plain.model(
                    **self.inputs(whole, case.vision), use_cache=False
                ).last_hidden_state[0, len(prompt) - 1 : -1]
                logprobs = self.plain.lm_head(hidden).float().log_softmax(1)
                loss = _loss(logprobs.gather(1, torch.tensor(answer)[:, None])[:, 0])
                if train:
                    loss.backward()
        return tokens

    def inputs(self, token_ids: torch.Tensor, vision: VisionInput) -> dict[str, torch.Tensor]:
        return {
            "input_ids": token_ids,
            "pixel_values_videos": vision.patches,
            "video_grid_thw": torch.tensor([vision.grid_thw]),
            "mm_token_type_ids": (token_ids == self.video_id).int() * 2,
        }


def _loss(logprobs_C: torch.Tensor) -> torch.Tensor:
    old = logprobs_C.detach()
    return objectives.policy_gradient(logprobs_C, old, old - 0.5).sum()


def tree_rows(repetitions: int) -> Iterator[Row]:
    """Score and update: the tree against separate sequences."""
    models = Models()
    for sentences, bound in ((1, 6.0), (5, 18.0)):
        case = models.case(sentences, 8)
        for stage, train in (("score", False), ("update", True)):
            tokens: dict[str, int] = {}

            def tree(case: Case = case, train: bool = train, t: dict[str, int] = tokens) -> None:
                t["tree"] = models.run_tree(case, train)

            def apart(case: Case = case, train: bool = train, t: dict[str, int] = tokens) -> None:
                t["separate"] = models.run_separately(case, train)

            with torch.set_grad_enabled(train):
                seconds = medians({"tree": tree, "separate": apart}, repetitions)
            yield at_least(
                f"{stage}, {sentences} x 8 rollouts: separate / tree",
                seconds["separate"] / seconds["tree"],
                bound,
                seconds=seconds,
                tokens=tokens,
            )


def sampling_row(repetitions: int) -> Row:
    """Tokens a second of sampling 8 answers: one prefill against `generate`, which makes eight."""
    models = Models()
    case = models.case(1, 8)
    engine = HFEngine(models.tree, models.tokenizer)
    engine._end_ids = frozenset()  # both write exactly ANSWER tokens
    prompt = EncodedPrompt(tuple(case.prompts[0]), case.vision)
    request = Request("x", prompt, tuple(range(8)))
    inputs = models.inputs(torch.tensor([case.prompts[0]]), case.vision)

    def ours() -> None:
        engine.sample([[request]], SamplingParams(ANSWER))

    def generate() -> None:
        with torch.inference_mode():
            models.plain.generate(
                **inputs, do_sample=True, temperature=1.0, top_p=1.0, top_k=0, eos_token_id=None,
                num_return_sequences=8, max_new_tokens=ANSWER, min_new_tokens=ANSWER,
            )  # fmt: skip

    seconds = medians({"tree": ours, "generate": generate}, repetitions)
    return at_least(
        "HF sampling, 8 rollouts: generate / shared prefill",
        seconds["generate"] / seconds["tree"],
        2.0,
        seconds=seconds,
        tokens_a_second={name: 8 * ANSWER / s for name, s in seconds.items()},
    )


def rollout_count_rows(repetitions: int) -> Iterator[Row]:
    """A whole round (sample, score, update) with 8 rollouts a prompt against 1; its forwards."""
    models = Models()
    engine = HFEngine(models.tree, models.tokenizer)
    engine._end_ids = frozenset()
    forwards: dict[int, dict[str, float]] = {}

    def round_of(rollouts: int) -> None:
        case = models.case(1, rollouts)
        prompt = EncodedPrompt(tuple(case.prompts[0]), case.vision)
        before = models.tree.forwards
        answers = engine.sample(
            [[Request("x", prompt, tuple(range(rollouts)))]], SamplingParams(ANSWER)
        )["x"]
        sampled = models.tree.forwards - before - (ANSWER - 1)  # decode steps of one token each
        written = [[(i, list(a.token_ids)) for i, a in enumerate(answers)]]
        case = Case(case.prompts, written, case.vision)
        with torch.no_grad():
            models.run_tree(case, train=False)
        models.run_tree(case, train=True)
        forwards[rollouts] = {
            "sampling prefills": sampled,
            "teacher": 1,
            "update": 1,
            "counted": models.tree.forwards - before - (ANSWER - 1),
        }

    seconds = medians({"1": lambda: round_of(1), "8": lambda: round_of(8)}, repetitions)
    yield at_most(
        "whole round, 8 rollouts / 1 rollout a prompt", seconds["8"] / seconds["1"], 1.4,
        seconds=seconds,
    )  # fmt: skip
    yield at_most(
        "full forwards of a prompt's tree in a round (sample + score + update)",
        forwards[8]["counted"],
        3,
        unit="",
        **forwards[8],
    )


MEMORY_PROMPT, MEMORY_VOCABULARY = 4096, 32_000


def memory_row() -> Row:
    """Peak memory of scoring a 4,096-token prompt with 8 answers, each way in its own process."""
    peak = {}
    for way in ("nothing", "completion rows", "full logits"):
        command = [sys.executable, "-m", "flows.bench.trees", way]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        peak[way] = int(done.stdout.split()[-1]) / 1024
    extra = {way: mib - peak["nothing"] for way, mib in peak.items() if way != "nothing"}
    logits = (MEMORY_PROMPT + 8 * ANSWER) * MEMORY_VOCABULARY * 4 / 2**20
    return Row(
        "peak memory of scoring, full logits / completion rows",
        extra["full logits"] / extra["completion rows"],
        "x",
        "measured",
        None,
        {
            "MiB above the loaded model": extra,
            "one float32 logits tensor of all rows, MiB": logits,
            "the same of the completion rows, MiB": 8 * ANSWER * MEMORY_VOCABULARY * 4 / 2**20,
            "prompt tokens": MEMORY_PROMPT,
            "vocabulary": MEMORY_VOCABULARY,
        },
    )


def _measure_memory(way: str) -> None:
    torch.set_num_threads(1)
    models = Models(vocabulary=MEMORY_VOCABULARY)
    case = models.case(1, 8, prompt=MEMORY_PROMPT)
    with torch.inference_mode():
        if way == "completion rows":
            models.run_tree(case, train=False)
        elif way == "full logits":
            packed = pack([grow(case.prompts, case.answers, case.vision)])
            from opd_core.model.tree_attention import packed_attention

            layout = packed_attention(packed, models.tree.device)
            models.tree.log_softmax(models.tree.hidden(packed, layout))
    print(_peak_kib())


def _peak_kib() -> int:
    """VmHWM. Not getrusage: its maximum survives exec and would be that of the parent."""
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


if __name__ == "__main__":
    _measure_memory(sys.argv[1])
