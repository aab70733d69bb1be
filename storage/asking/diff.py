"""What two runs, or two rounds of a run, were made from, and how their numbers differ.

A side is a run as it is, or as it was when a round was finished. Its round is the one that made its
newest policy: the rows of that policy's parent. Inputs are compared by content where there is one
(hashes of weights, pixels and annotations), so two runs in different folders on the same data
differ in paths only. Numbers are compared on the examples that both sides have.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from storage.asking.config_in_force import config_in_force, flat
from storage.runs import run_folder

if TYPE_CHECKING:
    from storage.runs.run import Run

ABSENT = "absent"


@dataclass(frozen=True, slots=True)
class Input:
    """Something that the two sides were made from, and that is not the same."""

    name: str
    a: object
    b: object


@dataclass(frozen=True, slots=True)
class Number:
    """A mean over what both sides have."""

    name: str
    count: int
    of: str
    """What is counted: `examples`, `answers`."""
    a: float | None
    b: float | None
    largest: float | None = None
    """Largest difference of one of them."""

    @property
    def difference(self) -> float | None:
        return None if self.a is None or self.b is None else self.b - self.a


@dataclass(frozen=True, slots=True)
class Diff:
    a: str
    b: str
    same: tuple[str, ...]
    """Inputs that were compared and are the same."""
    inputs: tuple[Input, ...]
    numbers: tuple[Number, ...]


def diff(a: Run, b: Run) -> Diff:
    """What differs between two sides. Raises `VideoOPDError` when a config of theirs is gone."""
    of_a, of_b = dict(_inputs(a)), dict(_inputs(b))
    inputs, same = [], []
    for name in [*of_a, *(n for n in of_b if n not in of_a)]:
        values = of_a.get(name, ABSENT), of_b.get(name, ABSENT)
        if values[0] == values[1]:
            same.append(name)
        else:
            inputs.append(Input(name, *values))
    data, equal = _data(a, b)
    return Diff(
        _name(a), _name(b), tuple(same + equal), tuple(inputs + data), tuple(_numbers(a, b))
    )


def _name(run: Run) -> str:
    return f"{run.path}@{run.round}" if run.round is not None else f"{run.path}"


def _versions(run: Run) -> tuple[int, int]:
    """(the newest policy, the policy whose round made it; itself while there is no update)."""
    newest = run.updates().select(pl.col("policy_version").max()).collect().item() or 0
    return newest, max(newest - 1, 0)


def _inputs(run: Run) -> Iterator[tuple[str, object]]:
    """name -> value: weights, config, engine, processor, code."""
    content = run_folder.read(run.path)
    newest, parent = _versions(run)
    yield "base student weights", content["student"]["weights_hash"]
    update = run.updates().filter(pl.col("policy_version") == newest).collect().to_dicts()
    if update:
        yield "policy sampled from", update[0]["parent_hash"]
    yield "teacher weights", update[0]["teacher_hash"] if update else run.teacher_hash
    rollouts = run.rollouts().filter(pl.col("policy_version") == parent)
    for name, column in (
        ("processor", "processor_hash"),
        ("engine", "engine"),
        ("engine version", "engine_version"),
        ("code commit", "git_commit"),
    ):
        yield name, _values(rollouts, column)
    for key, value in sorted(flat(config_in_force(run).content).items()):
        if key != "run.path":
            yield f"config {key}", value


def _values(frame: pl.LazyFrame, column: str) -> str:
    distinct = frame.select(pl.col(column).unique()).collect().to_series().drop_nulls()
    return ", ".join(sorted(distinct.to_list())) or ABSENT


def _data(a: Run, b: Run) -> tuple[list[Input], list[str]]:
    """Annotations by example id (a hash of them), videos by the hash of what was seen of them."""
    differing: list[Input] = []
    same: list[str] = []
    sides = [run.examples().select("example_id", "split").collect() for run in (a, b)]
    for split in ("train", "eval"):
        of_a, of_b = (set(s.filter(pl.col("split") == split)["example_id"]) for s in sides)
        name = f"{split} examples"
        if of_a == of_b:
            same.append(name)
        else:
            shared = f"{len(of_a & of_b):,} in both"
            values = (f"{len(s):,}, {len(s - o):,} only here, {shared}"
                      for s, o in ((of_a, of_b), (of_b, of_a)))  # fmt: skip
            differing.append(Input(name, *values))
    drawn = [_drawn(run) for run in (a, b)]
    if drawn[0] == drawn[1]:
        same.append("draw")
    else:
        shared = f"{len(drawn[0] & drawn[1]):,} in both"
        differing.append(Input("draw", *(f"{len(d):,} examples, {shared}" for d in drawn)))
    pixels = [_pixels(run) for run in (a, b)]
    common = pixels[0].keys() & pixels[1].keys()
    changed = sorted(path for path in common if pixels[0][path] != pixels[1][path])
    if changed:
        first = changed[0]
        note = f" ({len(changed):,} of {len(common):,} videos differ)"
        differing.append(Input(f"pixels of {first}", *(p[first] + note for p in pixels)))
    elif common:
        same.append("pixels")
    return differing, same


def _drawn(run: Run) -> set[str]:
    rows = run.draws().filter(pl.col("policy_version") == _versions(run)[1])
    return set(rows.select("example_id").collect().to_series())


def _pixels(run: Run) -> dict[str, str]:
    """video path -> hash of its pixels, in the newest rollout of it."""
    rows = run.rollouts().select("example_id", "pixel_hash", "policy_version")
    paths = run.examples().select("example_id", "video_path")
    frame = rows.join(paths, on="example_id").sort("policy_version", "pixel_hash").collect()
    return dict(zip(frame["video_path"], frame["pixel_hash"], strict=True))


def _numbers(a: Run, b: Run) -> Iterator[Number]:
    answers = [_answers(run) for run in (a, b)]
    judgements = [_judgements(rows) for rows in answers]
    for name, column in (("strict", "iou"), ("timelens", "timelens_iou")):
        sides = [rows.select("example_id", value=column) for rows in answers]
        yield _mean(f"eval IoU, {name}", "examples", *sides)
    of_any = pl.concat(side.select("protocol") for side in judgements).unique().collect()
    for name in of_any["protocol"].sort():
        mine = pl.col("protocol") == name
        sides = [side.filter(mine).select("example_id", value="iou") for side in judgements]
        yield _mean(f"eval IoU, {name}", "examples", *sides)

    def of_round(run: Run) -> pl.LazyFrame:
        return run.trajectories().filter(pl.col("policy_version") == _versions(run)[1])

    for name, column in (
        ("student IoU", "student_iou"),
        ("teacher IoU", "teacher_iou"),
        ("reverse KL (k1), nats a token", "reverse_kl"),
    ):
        sides = [
            of_round(run).group_by("example_id").agg(value=pl.col(column).mean()) for run in (a, b)
        ]
        yield _mean(name, "examples", *sides)
    for column in ("sampling_logprobs", "teacher_logprobs"):
        yield _tokenwise(f"{column} of the same answers", column, of_round(a), of_round(b))


def _answers(run: Run) -> pl.LazyFrame:
    """Answers to the eval split, of the side's newest policy."""
    return run.present_evaluations().filter(pl.col("policy_version") == _versions(run)[0])


def _judgements(answers: pl.LazyFrame) -> pl.LazyFrame:
    """example_id, protocol, iou, ... of each protocol that has no columns of its own."""
    judged = (
        answers.select("example_id", "judgements").explode("judgements").drop_nulls("judgements")
    )
    return judged.unnest("judgements")


def _mean(name: str, of: str, a: pl.LazyFrame, b: pl.LazyFrame) -> Number:
    """Means over the example_ids that both have a value for."""
    both = a.drop_nulls().join(b.drop_nulls(), on="example_id", suffix="_b").collect()
    if both.is_empty():
        return Number(name, 0, of, None, None)
    mean_a, mean_b = (float(both[c].sum()) / both.height for c in ("value", "value_b"))
    largest = both.select((pl.col("value") - pl.col("value_b")).abs().max()).item()
    return Number(name, both.height, of, mean_a, mean_b, float(largest))


def _tokenwise(name: str, column: str, a: pl.LazyFrame, b: pl.LazyFrame) -> Number:
    """Means over tokens, of answers that are the same token by token to the same example."""
    key = pl.col("completion_token_ids").cast(pl.List(pl.String)).list.join(" ")
    sides = [
        side.select("example_id", column, key=key).drop_nulls().unique(["example_id", "key"])
        for side in (a, b)
    ]
    both = sides[0].join(sides[1], on=["example_id", "key"], suffix="_b").collect()
    tokens = both.explode(column, f"{column}_b")
    if tokens.is_empty():
        return Number(name, 0, "answers", None, None)
    mean_a, mean_b = (float(tokens[c].cast(pl.Float64).mean()) for c in (column, f"{column}_b"))  # type: ignore[arg-type]
    largest = tokens.select((pl.col(column) - pl.col(f"{column}_b")).abs().max()).item()
    return Number(name, both.height, "answers", mean_a, mean_b, float(largest))
