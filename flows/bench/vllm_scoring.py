"""Teacher scoring by vLLM's prompt_logprobs against the HF forward over prefix trees."""

from __future__ import annotations

from contextlib import ExitStack

from flows.bench.interleaved import Row, medians
from flows.bench.rounds import drawn_examples, sampled
from opd_core.config.load import load_config
from opd_core.prompts.batches import ExampleEncoder
from opd_core.scoring.trees import opened_scorer
from opd_core.types import Policy

PROMPTS, ROLLOUTS = 16, 8


def vllm_scoring_row(config_file: str, repetitions: int) -> Row:
    """Both score the same rollouts of the tiny world, models loaded, videos decoded."""
    overrides = [f"rollout.rollouts_per_example={ROLLOUTS}"]
    config = load_config(config_file, overrides)
    drawn = drawn_examples(config, PROMPTS)
    rollouts = sampled(config, Policy(0, config.student.path, "student"), drawn)
    teacher = Policy(0, config.teacher.path, "teacher")
    encoder = ExampleEncoder(config, teacher.path)
    (encoded,) = encoder.encode_batches([drawn], "score", 0)
    longest = 1 + max(len(r.completion_token_ids) for rows in rollouts.values() for r in rows)
    with ExitStack() as stack:
        work = {}
        for engine in ("hf", "vllm"):
            chosen = load_config(config_file, [*overrides, f"teacher.engine='{engine}'"])
            score = stack.enter_context(opened_scorer(chosen, teacher, encoder, longest))
            work[engine] = lambda score=score: list(score(encoded.videos, rollouts))
        seconds = medians(work, repetitions)
    return Row(
        "teacher scoring, 8 rollouts a prompt: vLLM prompt_logprobs / HF prefix trees",
        seconds["vllm"] / seconds["hf"],
        "x",
        "measured",
        None,
        {"seconds": seconds, "prompts": PROMPTS, "rollouts": PROMPTS * ROLLOUTS},
    )
