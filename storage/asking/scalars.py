"""The view `trajectories` for whoever asks it often: its scalar columns, read once and kept small.

Of a million rollouts the view takes eight seconds and more than a gigabyte: lists of log-probs, and
joins by long texts. Here every table is read in batches, of which a number is kept instead of a
list, and 64 bits instead of an id, and is joined by sorted keys (`sorted_keys.py`); what is kept is
about 70 bytes a rollout, and making it holds about as much again. `standing_in` puts it
in the place of the view: columns that are not kept are read from `rollouts` and `examples` when
somebody names them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from storage.asking.in_batches import PLACE, in_batches
from storage.asking.sorted_keys import SortedKeys, found
from storage.tables import views
from storage.tables.schemas import SCHEMA_VERSION

if TYPE_CHECKING:
    import polars as pl

    from storage.runs.run import Run

ROW = "row_of_view"
"""Beside the view's columns: the place of a row in it, 0, 1, ..."""
ID = "id_bits"
_WORDS = ("answered_by", "finish_reason", "reason")
"""Few values, many rows."""
KEPT = (
    "policy_version", "student_iou", "tokens", "teacher_iou", "selected", "disagreement", "rank",
    "reverse_kl", "trained", *_WORDS,
)  # fmt: skip
"""Columns of the view that are kept."""
TABLES_OF_VIEW = ("rollouts", "examples", "teacher_predictions", "teacher_scores", "selections",
                  "trained_rollouts", "updates", "reruns")  # fmt: skip
"""What the view is made of, and which of its rows are in force."""
_OF_ROLLOUTS = ("rollout_id", "example_id", "policy_hash", "sample_index", "text",
                "predicted_start", "predicted_end", "completion_token_ids",
                "sampling_logprobs")  # fmt: skip
_OF_EXAMPLES = ("video_path", "query", "span_start", "span_end", "source", "split", "duration")


@dataclass(frozen=True, slots=True)
class Scalars:
    """What is kept of the view of a frozen run."""

    run: Run
    frame: pl.DataFrame
    """The columns `KEPT`, `ID` (64 bits of the rollout's id) and `PLACE` (in `rollouts`); one row a
    rollout, in the order of the view."""

    def row_of(self, rollout_id: str) -> int | None:
        """The place of a rollout in the view; None where it is not there."""
        import polars as pl

        return self.frame.get_column(ID).index_of(pl.Series([rollout_id]).hash(seed=0).item())

    def places_by_id(self) -> pl.Series:
        """The place of each row among all, sorted by `rollout_id`."""
        import polars as pl

        ids = self.run.rollouts().select(pl.col("rollout_id").arg_sort().arg_sort())
        return ids.collect().to_series()

    def read(self, rows: pl.Series, columns: Sequence[str]) -> pl.DataFrame:
        """Columns of the table `rollouts`, of rows of the view, in their order."""
        places = self.frame.get_column(PLACE).gather(rows).to_list()
        version = self.run.table_version("rollouts")
        return self.run.tables.take("rollouts", places, columns, version)


def scalars(run: Run) -> Scalars:
    """What is to be kept of the view of a run as it is now. Raises what reading tables raises."""
    frozen = run.frozen()
    frame = None if frozen.tables.format < SCHEMA_VERSION else _by_batches(frozen)
    return Scalars(frozen, _by_view(frozen) if frame is None else frame)


def standing_in(scalars: Scalars, sql: str) -> pl.LazyFrame:
    """What has the columns of the view `trajectories` that a statement names, and `ROW`: the view
    itself, where it names one that is neither kept nor a column of `rollouts` or `examples`."""
    import polars as pl

    run = scalars.run
    words = {word.lower() for word in re.findall(r"\w+", sql)}
    names = set(run.trajectories().collect_schema().names())
    if words & (names - set(KEPT) - set(_OF_ROLLOUTS) - set(_OF_EXAMPLES)):
        return run.trajectories().with_row_index(ROW)
    types: dict[str, type[pl.DataType]] = dict.fromkeys(_WORDS, pl.String)
    types |= {"policy_version": pl.Int64, "tokens": pl.UInt32, "rank": pl.Int64}
    parts = [scalars.frame.lazy().drop(ID, PLACE).with_row_index(ROW).cast(types)]  # type: ignore[arg-type]
    # What nothing is asked of is left out: its rows would be read to be counted.
    if more := [name for name in _OF_ROLLOUTS if name in words]:
        parts.append(run.rollouts().select(more))
    if more := [name for name in _OF_EXAMPLES if name in words]:
        examples = run.examples().select("example_id", *more)
        ids = run.rollouts().select("example_id")
        joined = ids.join(examples, on="example_id", how="left", maintain_order="left")
        parts.append(joined.drop("example_id"))
    return pl.concat(parts, how="horizontal")


def _by_view(run: Run) -> pl.DataFrame:
    """By the view itself: of rounds with several teachers, and of tables of an older format."""
    import polars as pl

    small: dict[str, type[pl.DataType]] = dict.fromkeys(_WORDS, pl.Categorical)
    small |= dict.fromkeys(("policy_version", "tokens", "rank"), pl.Int32)
    places = run.scan("rollouts", superseded=True).with_row_index(PLACE)
    in_force = run.in_force("rollouts")
    places = places if in_force is None else places.filter(in_force)
    frame = run.trajectories().select(_bits("rollout_id"), *KEPT).cast(small)  # type: ignore[arg-type]
    return pl.concat([frame, places.select(PLACE)], how="horizontal").collect()


def _by_batches(run: Run) -> pl.DataFrame | None:
    """The same from batches of the tables; None where a round has several teachers."""
    import polars as pl

    newest: dict[str, list[pl.DataFrame]] = {"teacher_scores": [], "teacher_predictions": []}

    def score(batch: pl.DataFrame) -> pl.DataFrame:
        newest["teacher_scores"].append(_newest(batch, "policy_version", "teacher_hash"))
        return batch.select(
            _bits("rollout_id"), pl.col("policy_version").cast(pl.Int32),
            pl.col("teacher_hash").cast(pl.Categorical),
            theirs=pl.col("teacher_logprobs").list.mean(),
        )  # fmt: skip

    def answer(batch: pl.DataFrame) -> pl.DataFrame:
        newest["teacher_predictions"].append(_newest(batch, "teacher_hash", "question_hash"))
        keyed = batch.select(_asked(_bits("example_id", "key")), "iou")
        return keyed.group_by("key").agg(pl.col("iou").sum(), answers=pl.len())

    answers = _means(in_batches(
        run, "teacher_predictions",
        ("example_id", "teacher_hash", "question_hash", "iou", "written_at"), answer,
    ))  # fmt: skip
    scores = in_batches(
        run, "teacher_scores",
        ("rollout_id", "policy_version", "teacher_hash", "teacher_logprobs", "written_at"), score,
    )  # fmt: skip
    rounds = _rounds(run, {name: pl.concat(parts) for name, parts in newest.items()})
    if rounds.get_column("teacher_hash").str.contains("+", literal=True).any():
        return None
    of_round = rounds.select(
        pl.col("policy_version").cast(pl.Int32), "trained_in",
        pl.col("teacher_hash").cast(pl.Categorical), asked=_asked(pl.lit(0, pl.UInt64)),
    )  # fmt: skip
    by = ("policy_version", "teacher_hash")
    scores = scores.join(of_round, on=by, how="semi").select(ID, "theirs")
    frame = in_batches(
        run, "rollouts",
        ("rollout_id", "example_id", "policy_version", "student_iou", "answered_by",
         "finish_reason", "sampling_logprobs"),
        lambda batch: batch.select(
            _bits("rollout_id"), PLACE, pl.col("policy_version").cast(pl.Int32), "student_iou",
            pl.col("answered_by", "finish_reason").cast(pl.Categorical),
            _bits("example_id", "key"),
            ours=pl.col("sampling_logprobs").list.mean(),
            tokens=pl.col("sampling_logprobs").list.len().cast(pl.Int32),
        ),
    )  # fmt: skip
    ids = SortedKeys(frame.get_column(ID))
    if not ids.are_different:
        return None  # two ids of the same 64 bits, once in ten million runs of a million rollouts
    if frame.get_column("tokens").null_count():  # answers that nothing sampled have no log-probs
        lengths = run.rollouts().select(pl.col("completion_token_ids").list.len().cast(pl.Int32))
        frame = frame.with_columns(lengths.collect().to_series().alias("tokens"))
    rows = frame.select("policy_version").join(
        of_round, on="policy_version", how="left", maintain_order="left"
    )
    asked = SortedKeys(frame.get_column("key") ^ rows.get_column("asked"))
    frame = frame.drop("key").hstack([found(asked, answers, "key").to_series()])
    del asked, answers
    theirs = found(ids, scores, ID).to_series()
    del scores
    kl = frame.select((pl.col("ours") - theirs).alias("reverse_kl")).to_series()
    frame = frame.drop("ours").hstack([kl])
    del kl, theirs
    selections = in_batches(
        run, "selections", ("rollout_id", "selected", "reason", "disagreement", "rank"),
        lambda batch: batch.select(
            _bits("rollout_id"), "selected", "disagreement", pl.col("rank").cast(pl.Int32),
            pl.col("reason").cast(pl.Categorical),
        ),
    )  # fmt: skip
    frame = frame.hstack(found(ids, selections, ID))
    del selections
    met = in_batches(
        run, "trained_rollouts", ("rollout_id",), lambda batch: batch.select(_bits("rollout_id"))
    )
    met = found(ids, met.with_columns(met=pl.lit(True)), ID)
    trained = met.select(
        trained=pl.col("met").is_not_null() & rows.get_column("trained_in").is_not_null()
    )
    return frame.hstack(trained).select(ID, PLACE, *KEPT)


def _means(answers: pl.DataFrame) -> pl.DataFrame:
    """key, teacher_iou: the mean over all answers; those of a batch of the table are one row."""
    import numpy as np
    import polars as pl

    known = answers.drop_nulls("key")
    keys = known.get_column("key").to_numpy()
    order = np.argsort(keys)
    keys = keys[order]
    first = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]]) if len(keys) else order
    sums = [
        np.add.reduceat(known.get_column(name).to_numpy()[order], first) if len(first) else first
        for name in ("iou", "answers")
    ]
    return pl.DataFrame({"key": keys[first], "teacher_iou": sums[0] / sums[1]})


def _newest(batch: pl.DataFrame, *by: str) -> pl.DataFrame:
    """The last time that each of few values was written."""
    import polars as pl

    last = batch.group_by(by).agg(pl.col("written_at").max())
    # As categories: a text that is kept would keep the texts of its whole batch.
    return last.with_columns(pl.col(pl.String).cast(pl.Categorical))


def _rounds(run: Run, newest: dict[str, pl.DataFrame]) -> pl.DataFrame:
    """What the view knows of each round; of large tables it is given what that depends on."""
    import polars as pl

    def scan(name: str) -> pl.LazyFrame:
        if name in newest:
            return newest[name].lazy().with_columns(pl.col(pl.Categorical).cast(pl.String))
        frame = run.scan(name)
        if name == "rollouts":
            return frame.select("policy_version")
        if name == "selections":
            return frame.select("policy_version", "question_hash").unique(
                "policy_version", keep="first"
            )
        return frame

    return views.rounds_of(scan, run.teacher_hash).collect()


def _bits(column: str, name: str = ID) -> pl.Expr:
    """64 bits that stand for a text."""
    import polars as pl

    return pl.col(column).hash(seed=0).alias(name)


def _asked(bits: pl.Expr) -> pl.Expr:
    """64 bits, and in them those of a teacher and a question; null where one is not known."""
    import polars as pl

    teacher, question = pl.col("teacher_hash"), pl.col("question_hash")
    known = teacher.is_not_null() & question.is_not_null()
    return bits ^ pl.when(known).then(teacher.hash(seed=1) ^ question.hash(seed=2))
