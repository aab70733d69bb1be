"""Teacher scoring by vLLM's prompt_logprobs against the HF forward over prefix trees."""

from __future__ import annotations

from contextlib import ExitStack

from opd_core.annotations.timelens import read_timelens
from opd_core.bench.interleaved import Row, medians
from opd_core.config.load import load_config
from opd_core.focus.select import draw_examples
from opd_core.prompts.batches import ExampleEncoder
from opd_core.rollout.answers import sample_rollouts
from opd_core.scoring.trees import opened_scorer
from opd_core.types import GroundingExample, Policy, Rollout

PROMPTS, ROLLOUTS = 16, 8


def vllm_scoring_row(config_file: str, repetitions: int) -> Row:
    """Both score the same rollouts of the tiny world, models loaded, videos decoded."""
    overrides = [f"rollout.rollouts_per_example={ROLLOUTS}"]
    config = load_config(config_file, overrides)
    drawn = draw_examples(
        [e for e in read_timelens(config.data.train, "train") if isinstance(e, GroundingExample)],
        PROMPTS,
        config.rollout.max_queries_per_video,
        seed=0,
    )
    policy = Policy(0, config.student.path, "student")
    rollouts: dict[str, list[Rollout]] = {}
    for batch in sample_rollouts(config, policy, drawn, set()):
        for rollout in batch.records:
            rollouts.setdefault(rollout.example_id, []).append(rollout)
    teacher = Policy(0, config.teacher.path, "teacher")
    encoder = ExampleEncoder(config, teacher.path)
    (encoded,) = encoder.encode_batches([drawn], "score", 0)
    with ExitStack() as stack:
        work = {}
        for engine in ("hf", "vllm"):
            chosen = load_config(config_file, [*overrides, f"teacher.engine='{engine}'"])
            score = stack.enter_context(opened_scorer(chosen, teacher, encoder, rollouts))
            work[engine] = lambda score=score: list(score(encoded.videos, []))
        seconds = medians(work, repetitions)
    return Row(
        "teacher scoring, 8 rollouts a prompt: vLLM prompt_logprobs / HF prefix trees",
        seconds["vllm"] / seconds["hf"],
        "x",
        "measured",
        None,
        {"seconds": seconds, "prompts": PROMPTS, "rollouts": PROMPTS * ROLLOUTS},
    )
