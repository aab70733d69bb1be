"""What is computed from a run's tables."""

from __future__ import annotations

import polars as pl
import pytest

from flows.study.rows import seconds_longer


def test_how_much_longer_answers_are_than_the_truth() -> None:
    answers = pl.LazyFrame(
        {
            "policy_version": [0, 0, 0, 1],
            "example_id": ["a", "b", "c", "a"],
            "predicted_start": [0.0, 2.0, None, None],
            "predicted_end": [8.0, 804.0, None, None],
        },
        schema_overrides={"predicted_start": pl.Float64, "predicted_end": pl.Float64},
    )
    examples = pl.LazyFrame(
        {
            "example_id": ["a", "b", "c"],
            "span_start": [1.0, 1.0, 1.0],
            "span_end": [4.0, 4.0, 9.0],
            "duration": [12.0, 4.0, 12.0],
        }
    )
    assert seconds_longer(answers, examples) == {
        0: pytest.approx((5 - 1) / 2),
        1: None,
    }, "what has no span has no length, and no answer is longer than its video"
