"""One run on an accelerator: tokens a second, MFU and peak memory of sample, score and update.

    videoopd bench accelerator

Qwen3-VL-2B and -8B shapes with random weights, bfloat16, 4,096 and 8,192 video tokens, 8 rollouts
of 20 tokens; each as a tree and as separate sequences. On a machine without CUDA it runs a small
shape, which shows that the script works and says nothing about speed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch

from flows.bench.drawn import DrawnTokenizer, Shape, drawn_model, drawn_prompt
from flows.bench.interleaved import Row
from opd_core.engines.base import Request, SamplingParams
from opd_core.engines.hf.sampling import HFEngine
from opd_core.model.architectures import QWEN3_VL
from opd_core.model.prefix_tree import PrefixTree, grow, pack
from opd_core.model.tree_model import TreeModel
from opd_core.update import objectives

ROLLOUTS, ANSWER, SENTENCE = 8, 20, 64
SIDE = 8
"""A frame is 8 x 8 vision tokens."""
VIDEO_TOKENS = (4096, 8192)
PEAK_BF16_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense, from the vendor's data sheets; MFU is left out for a chip that is not here."""


_TEXT = {
    "vocab_size": 151_936, "head_dim": 128, "num_key_value_heads": 8,
    "max_position_embeddings": 262_144,
    "rope_parameters": {
        "rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20],
    },
}  # fmt: skip
SHAPES = (
    Shape(
        "Qwen3-VL-2B",
        {**_TEXT, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28,
         "num_attention_heads": 16},
        {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16,
         "out_hidden_size": 2048, "deepstack_visual_indexes": [5, 11, 17]},
    ),
    Shape(
        "Qwen3-VL-8B",
        {**_TEXT, "hidden_size": 4096, "intermediate_size": 12_288, "num_hidden_layers": 36,
         "num_attention_heads": 32},
        {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16,
         "out_hidden_size": 4096, "deepstack_visual_indexes": [8, 16, 24]},
    ),
)  # fmt: skip
SMALL = Shape(
    "small, on the CPU",
    {**_TEXT, "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "head_dim": 16,
     "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
     "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]}},
    {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2,
     "out_hidden_size": 64, "deepstack_visual_indexes": [0]},
)  # fmt: skip


def accelerator_rows(repetitions: int = 3) -> Iterator[Row]:
    """Rows for each shape and prompt length on this machine."""
    cuda = torch.cuda.is_available()
    for shape in SHAPES if cuda else (SMALL,):
        model = drawn_model(shape, torch.device("cuda" if cuda else "cpu"))
        for video_tokens in VIDEO_TOKENS if cuda else (256,):
            yield from _measure(shape, model, video_tokens, repetitions)
        del model
        if cuda:
            torch.cuda.empty_cache()


def _measure(shape: Shape, model: TreeModel, video_tokens: int, repetitions: int) -> Iterator[Row]:
    tokenizer = DrawnTokenizer.of(shape)
    prompt = drawn_prompt(tokenizer, video_tokens // SIDE**2, SIDE, SENTENCE, seed=0)
    generator = torch.Generator().manual_seed(1)
    answers = [(i, tokenizer.draw(ANSWER, generator)) for i in range(ROLLOUTS)]
    tree = grow([prompt.token_ids], [answers], prompt.vision)
    apart = [grow([prompt.token_ids], [[answer]], prompt.vision) for answer in answers]
    engine = HFEngine(model, tokenizer)
    language = sum(p.numel() for p in QWEN3_VL.module(model.model, QWEN3_VL.text).parameters())

    def sample(group: int) -> None:
        for first in range(0, ROLLOUTS, group):
            request = Request("x", prompt, tuple(range(first, first + group)))
            engine.sample([[request]], SamplingParams(ANSWER))

    def score(trees: list[PrefixTree]) -> None:
        with torch.inference_mode():
            for one in trees:
                for _, token_ids_C, logprobs_CV in model.completion_distributions(pack([one])):
                    logprobs_CV.gather(1, token_ids_C[:, None]).sum().item()

    def update(trees: list[PrefixTree]) -> None:
        model.model.zero_grad(set_to_none=True)
        for one in trees:
            loss = torch.zeros((), device=model.device)
            for _, token_ids_C, logprobs_CV in model.completion_distributions(pack([one])):
                chosen_C = logprobs_CV.gather(1, token_ids_C[:, None])[:, 0]
                old_C = chosen_C.detach()
                loss = loss + objectives.policy_gradient(chosen_C, old_C, old_C - 0.5).sum()
            loss.backward()

    written = ROLLOUTS * ANSWER
    for stage, by_tree, separately, per_token in (
        ("sample", lambda: sample(ROLLOUTS), lambda: sample(1), 2),
        ("score", lambda: score([tree]), lambda: score(apart), 2),
        ("update", lambda: update([tree]), lambda: update(apart), 6),
    ):
        seconds, memory = _time(by_tree, repetitions, model.device)
        slow, slow_memory = _time(separately, repetitions, model.device)
        flops = per_token * language * (len(prompt.token_ids) + written)
        yield Row(
            f"{shape.name}, {video_tokens} video tokens, {stage}: separate / tree",
            slow / seconds,
            "x",
            "measured",
            None,
            {
                "device": _device_name(model.device),
                "answer tokens a second, tree": written / seconds,
                "answer tokens a second, separate": written / slow,
                "MFU of the language model, tree": _mfu(flops / seconds, model.device),
                "peak MiB, tree": memory,
                "peak MiB, separate": slow_memory,
            },
        )


def _time(
    call: Callable[[], None], repetitions: int, device: torch.device
) -> tuple[float, float | None]:
    """(median seconds, peak MiB on CUDA or None); one unmeasured call first, which compiles."""
    cuda = device.type == "cuda"
    seconds = []
    for turn in range(repetitions + 1):
        if cuda:
            torch.cuda.reset_peak_memory_stats()
            torch.cuda.synchronize()
        began = time.perf_counter()
        call()
        if cuda:
            torch.cuda.synchronize()
        if turn:
            seconds.append(time.perf_counter() - began)
    memory = torch.cuda.max_memory_allocated() / 2**20 if cuda else None
    return sorted(seconds)[len(seconds) // 2], memory


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name() if device.type == "cuda" else "CPU"


def _mfu(flops_a_second: float, device: torch.device) -> float | None:
    name = _device_name(device)
    peak = next((v for k, v in PEAK_BF16_FLOPS.items() if k in name), None)
    return None if peak is None else flops_a_second / peak
