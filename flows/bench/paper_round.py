"""Hours of a round of the paper on the card that was measured: 2,500 examples with one rollout
each, 8,192 video tokens, student 8B. From measured parts that share nothing: every example has a
video of its own.

A teacher of 32B was not run: its hours are those of an 8B teacher by the ratio of their matrices,
at the same MFU. Not counted: loading, saving, evaluation, and the optimiser's steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from flows.bench.drawn import Shape
from flows.bench.interleaved import Row, at_most
from flows.bench.shapes import QWEN3_VL_8B, QWEN3_VL_32B
from flows.bench.stage_speed import ROLLOUTS, name_of

EXAMPLES = 2500
HOURS = 2.5
"""What is promised; the published system took 16 A100-hours."""
PREDICTIONS = 4
"""Answers of the teacher to each sentence, by which the paper chooses what to train on."""


def hours_rows(known: Mapping[str, Row], video_tokens: int) -> Iterator[Row]:
    """Two rows where all parts of an 8B student are among the rows `known` by name."""
    sample, score, update = (
        known.get(name_of(QWEN3_VL_8B, video_tokens, stage, what))
        for stage, what in (("sample", "prompts"), ("score", "ratio"), ("update", "ratio"))
    )
    if sample is None or score is None or update is None:
        return
    larger = matrices(QWEN3_VL_32B) / matrices(QWEN3_VL_8B)
    each = {
        "sample": sample.details["prompts in a batch, one rollout each, seconds"] / ROLLOUTS,
        "score": larger * score.details["separate_seconds"] / ROLLOUTS,
        "update": update.details["separate_seconds"] / ROLLOUTS,
    }
    yield at_most(
        f"a round of {EXAMPLES} examples, one rollout: 8B from 32B, of measured parts",
        EXAMPLES * sum(each.values()) / 3600, HOURS, unit=" hours",
        device=sample.details["device"],
        hours={stage: EXAMPLES * seconds / 3600 for stage, seconds in each.items()},
        teacher_larger=larger,
        hours_with_a_teacher_of_8B=(
            EXAMPLES * (sum(each.values()) - (1 - 1 / larger) * each["score"]) / 3600
        ),
    )  # fmt: skip
    predicted = larger * sample.details["rollouts of one prompt, seconds"]
    yield Row(
        f"{PREDICTIONS} predictions of the 32B teacher for each of {EXAMPLES}",
        EXAMPLES * predicted / 3600, "hours", "counted apart", None,
        {"measured with": f"{ROLLOUTS} rollouts a prompt, which share its prefill"},
    )  # fmt: skip


def matrices(shape: Shape) -> int:
    """Numbers in the matrices of the language model's layers."""
    text = shape.text
    width, heads, kinds = (
        text[k] for k in ("hidden_size", "num_attention_heads", "num_key_value_heads")
    )
    attention = 2 * width * text["head_dim"] * (heads + kinds)
    return int(text["num_hidden_layers"] * (attention + 3 * width * text["intermediate_size"]))
