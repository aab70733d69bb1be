"""The answers to the eval split: a policy's, or those of any Hugging Face folder.

A policy's are rows of `evaluations`, those of another model rows of `model_evaluations`, by its
weights and by how it was asked. What is missing is asked first, where there is a config to ask by.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from flows.console.progress import progress
from flows.stage.prepare import Work, check_weights
from flows.stage.processor_cache import processor_hash_of
from flows.stage.rows import eval_examples
from opd_core.hub.name import cached_model
from opd_core.prompts.question_key import evaluation_question
from opd_core.spans.metrics import duration_bucket, per_example
from opd_core.types import QuarantinedItem, VideoOPDError

if TYPE_CHECKING:
    from storage.runs.run import Run


@dataclass(frozen=True, slots=True)
class Answers:
    """Who answered, and a row an example: `per_example`, example_id, video, source, ..."""

    who: str
    rows: pl.DataFrame
    left_out: int = 0
    """Examples of the eval split that were asked and have no answer: in no number;"""
    because: str | None = None
    """the first of the reasons."""


def of_policy(run: Run, version: int | None = None) -> Answers:
    """The stored answers of a policy, by default the newest. Raises `VideoOPDError` for none."""
    newest = run.updates().select(pl.col("policy_version").max()).collect().item() or 0
    version = newest if version is None else version
    if not 0 <= version <= newest:
        raise VideoOPDError(f"run {run.path} has no policy {version}; give one from 0 to {newest}")
    rows = run.present_evaluations().filter(pl.col("policy_version") == version)
    if rows.head(1).collect().is_empty():
        run.refuse_let_go(run.committed(version))  # else it would be told to ask for them
    set_aside = run.quarantine().filter(
        (pl.col("stage") == "evaluate") & (pl.col("policy_version") == version)
    )
    return _answers(run, f"{run.path} policy {version}", rows, set_aside)


def answered_by_policy(work: Work, version: int | None = None) -> Answers:
    """The answers of a policy to the whole eval split, after asking what has none."""
    from flows import stages

    policy = work.answering(version)
    stages.evaluate.fn(work, policy)
    return of_policy(work.run, policy.version)


def answered_by_model(work: Work, folder: Path) -> Answers:
    """The answers of a Hugging Face folder to the eval split, after asking what has none."""
    processor = processor_hash_of(folder, work.run.path)
    question = evaluation_question(work.config, processor)
    check_weights(work.run.path, folder)
    digest = work.run.weights_hash(folder)
    mine = (pl.col("model_hash") == digest) & (pl.col("question_hash") == question)
    examples = eval_examples(work)
    asked = [e.example_id for e in examples]
    known = work.run.model_evaluations().filter(mine).select("example_id").collect()
    done = set(known["example_id"])
    faults: list[QuarantinedItem] = []
    if missing := len(set(asked) - done):
        work.about_to_work()
        from opd_core.rollout.answers import evaluate_model
        from opd_core.types import Policy

        model = Policy(0, folder, digest)
        with progress("evaluate", missing) as advance:
            for batch in evaluate_model(work.config, model, question, examples, done):
                work.run.append("model_evaluations", batch.records)
                work.run.append("quarantine", batch.quarantined, stage="evaluate model")
                faults += batch.quarantined
                advance(batch.examples)
    rows = work.run.model_evaluations().filter(mine & pl.col("example_id").is_in(asked))
    set_aside = pl.LazyFrame(
        {"item_id": [f.item_id for f in faults], "reason": [f.reason for f in faults]},
        schema={"item_id": pl.String, "reason": pl.String},
    )
    return _answers(work.run, str(cached_model(folder) or folder), rows, set_aside)


def _answers(run: Run, who: str, rows: pl.LazyFrame, set_aside: pl.LazyFrame) -> Answers:
    """`set_aside`: item_id and reason of what was asked and may have no answer."""
    examples = run.present().select("example_id", "source", "duration", video="video_path")
    answers = (
        rows.select("example_id", *(value.alias(name) for name, value in per_example().items()))
        .join(examples, on="example_id")
        .with_columns(duration=duration_bucket(pl.col("duration")), seconds=pl.col("duration"))
        .sort("example_id")
        .collect()
    )
    lost = set_aside.join(examples, left_on="item_id", right_on="example_id", how="semi")
    reasons = lost.join(rows, left_on="item_id", right_on="example_id", how="anti").select("reason")
    missing = reasons.collect()["reason"].to_list()
    if answers.is_empty():
        raise VideoOPDError(
            f"{who} has no answers to the eval split; give the config instead of the run, and "
            "`videoopd evaluate` asks for them"
        )
    return Answers(who, answers, len(missing), missing[0] if missing else None)
