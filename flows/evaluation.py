"""`videoopd evaluate`: how well a policy or any model answers the eval split, with intervals.

Answers are rows: a policy's in `evaluations`, those of any other Hugging Face folder in
`model_evaluations`, by its weights and by how it was asked. What is missing is asked first, where
there is a config to ask by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from rich import box
from rich.table import Table

from flows.console.progress import progress
from flows.console.report import ABSENT, console
from flows.stage.prepare import Work, WorkLeft, check_weights, opened
from flows.stage.processor_cache import processor_hash_of
from flows.stage.rows import eval_examples
from opd_core.model.weight_files import is_adapter
from opd_core.prompts.question_key import evaluation_question
from opd_core.spans.bootstrap import RESAMPLES, Estimate, estimates
from opd_core.spans.metrics import duration_bucket, no_span, per_example, titles
from opd_core.spans.protocols.known import PROTOCOLS
from opd_core.types import QuarantinedItem, VideoOPDError

if TYPE_CHECKING:
    from storage.runs.run import Run

OpenRun = Callable[[str], "Run"]
ALL = "all"


@dataclass(frozen=True, slots=True)
class Answers:
    """Who answered, and a row an example: `per_example`, example_id, video, source, ..."""

    who: str
    rows: pl.DataFrame
    left_out: int = 0
    """Examples of the eval split that were asked and have no answer: in no number;"""
    because: str | None = None
    """the first of the reasons."""


@dataclass(frozen=True, slots=True)
class Group:
    """Some of the examples: `all`, or those of one source or duration."""

    name: str
    examples: int
    videos: int
    metrics: dict[str, Estimate]
    """By the names of `per_example`."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two that answered the same examples."""

    a: str
    b: str
    shared: int
    only_a: int
    only_b: int
    of_a: Group
    of_b: Group
    difference: Group
    """a - b."""


def of_policy(run: Run, version: int | None = None) -> Answers:
    """The stored answers of a policy, by default the newest. Raises `VideoOPDError` for none."""
    newest = run.updates().select(pl.col("policy_version").max()).collect().item() or 0
    version = newest if version is None else version
    if not 0 <= version <= newest:
        raise VideoOPDError(f"run {run.path} has no policy {version}; give one from 0 to {newest}")
    rows = run.present_evaluations().filter(pl.col("policy_version") == version)
    set_aside = run.quarantine().filter(
        (pl.col("stage") == "evaluate") & (pl.col("policy_version") == version)
    )
    return _answers(run, f"{run.path} policy {version}", rows, set_aside)


def answered_by_policy(work: Work, version: int | None = None) -> Answers:
    """The answers of a policy to the whole eval split, after asking what has none."""
    from flows import stages

    policy = work.policy(version)
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
    return _answers(work.run, str(folder), rows, set_aside)


def _answers(run: Run, who: str, rows: pl.LazyFrame, set_aside: pl.LazyFrame) -> Answers:
    """`set_aside`: item_id and reason of what was asked and may have no answer."""
    examples = run.present().select("example_id", "source", "duration", video="video_path")
    found = (
        rows.select("example_id", *(value.alias(name) for name, value in per_example().items()))
        .join(examples, on="example_id")
        .with_columns(duration=duration_bucket(pl.col("duration")), seconds=pl.col("duration"))
        .sort("example_id")
        .collect()
    )
    lost = set_aside.join(examples, left_on="item_id", right_on="example_id", how="semi")
    reasons = lost.join(rows, left_on="item_id", right_on="example_id", how="anti").select("reason")
    missing = reasons.collect()["reason"].to_list()
    if found.is_empty():
        raise VideoOPDError(
            f"{who} has no answers to the eval split; give the config instead of the run, and "
            "`videoopd evaluate` asks for them"
        )
    return Answers(who, found, len(missing), missing[0] if missing else None)


def groups(answers: Answers, by: str | None = None) -> Iterator[Group]:
    """All examples, then those of each `source` or `duration`, short ones first."""
    yield _group(ALL, answers.rows)
    if by is None:
        return
    order = "seconds" if by == "duration" else by
    for (name,), rows in answers.rows.sort(order, "example_id").group_by(by, maintain_order=True):
        yield _group(str(name), rows)


def _group(name: str, rows: pl.DataFrame) -> Group:
    names = list(per_example())
    values = rows.select(pl.col(names).cast(pl.Float64)).to_numpy()
    found = estimates(np.ascontiguousarray(values), rows["video"].to_list())
    metrics = dict(zip(names, found, strict=True))
    return Group(name, rows.height, rows["video"].n_unique(), metrics)


def numbers(group: Group) -> dict[str, float]:
    """Every metric with the ends of its interval, flat: `strict_miou`, `strict_miou_low`, ..."""
    flat: dict[str, float] = {}
    for name, estimate in group.metrics.items():
        ends = {"": estimate.value, "_low": estimate.low, "_high": estimate.high}
        flat |= {f"{name}{end}": value for end, value in ends.items() if value is not None}
    return flat


def compare(a: Answers, b: Answers) -> Comparison:
    """Paired on the examples that both answered. Raises `VideoOPDError` when they share none."""
    names = list(per_example())
    left, right = (side.rows.cast(dict.fromkeys(names, pl.Float64)) for side in (a, b))
    both = left.join(right.select("example_id", *names), on="example_id", suffix="_b")
    both = both.sort("example_id")
    if both.is_empty():
        raise VideoOPDError(
            f"{a.who} ({left.height} examples) and {b.who} ({right.height}) share no example; "
            "evaluate both on the same data.eval"
        )
    other = both.with_columns(pl.col(f"{name}_b").alias(name) for name in names)
    apart = both.with_columns(pl.col(name) - pl.col(f"{name}_b") for name in names)
    of_a, of_b, difference = (_group(ALL, rows) for rows in (both, other, apart))
    only = left.height - both.height, right.height - both.height
    return Comparison(a.who, b.who, both.height, *only, of_a, of_b, difference)


# --- the command -------------------------------------------------------------------------------


def evaluate_command(
    target: str,
    open_run: OpenRun,
    policy: int | None = None,
    model: Path | None = None,
    against: str | None = None,
    by: str | None = None,
    format: str = "table",
    overrides: Sequence[str] = (),
) -> None:
    """`target` is a run or a config, RUN@3 its policy 3; `against` is one too, or a model's folder
    that answers by the config of `target`. `overrides` are of that config."""
    if model is not None and policy is not None:
        raise VideoOPDError("--policy and --model name two things to evaluate; give one of them")
    if model is not None and not _is_model(model):
        raise VideoOPDError(
            f"there is no model in {model}; give --model the folder of a Hugging Face checkpoint, "
            "with config.json and its weights"
        )
    first = _answered(target, open_run, policy, model, overrides)
    if against is None:
        _show_groups(first, list(groups(first, by)), format)
    elif _is_model(Path(against)):
        second = _answered(target, open_run, None, Path(against), overrides)
        _show_comparison(compare(first, second), format)
    else:
        _show_comparison(compare(first, _answered(against, open_run)), format)


def _answered(
    target: str,
    open_run: OpenRun,
    policy: int | None = None,
    model: Path | None = None,
    overrides: Sequence[str] = (),
) -> Answers:
    """The answers of a side; a config asks what is missing of them."""
    path, at, number = target.rpartition("@")
    if at and number.isdecimal() and not Path(target).exists():
        if policy not in (None, int(number)):
            raise VideoOPDError(f"{target} is policy {number}; leave out --policy {policy}")
        target, policy = path, int(number)
    if Path(target).is_file():
        return _asked(target, policy, model, overrides)
    if overrides:
        raise VideoOPDError(
            f"--set overrides a config, and {target} is none; give the TOML file instead"
        )
    if model is not None:
        raise VideoOPDError(
            f"to ask the model in {model} takes a config, and {target} is none; give the TOML file "
            "whose data.eval it is to answer"
        )
    return of_policy(open_run(target), policy)


def _asked(
    config: str, policy: int | None, model: Path | None, overrides: Sequence[str]
) -> Answers:
    """The answers by a config: as they are where none is missing, which takes no model."""

    def answered(looking: bool) -> Answers:
        with opened(config, overrides, looking=looking, goes_on=False) as work:
            if model is not None:
                return answered_by_model(work, model.resolve())
            return answered_by_policy(work, policy)

    try:
        return answered(looking=True)
    except WorkLeft:
        return answered(looking=False)


def _is_model(folder: Path) -> bool:
    return (folder / "config.json").is_file() or is_adapter(folder)


def _show_groups(answers: Answers, found: list[Group], format: str) -> None:
    if format == "json":
        groups = [asdict(group) for group in found]
        _print_json({"who": answers.who, "left_out": answers.left_out, **_how(), "groups": groups})
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("", "examples", "videos", "", *PROTOCOLS):
        table.add_column(name, justify="left" if not name else "right")
    for group in found:
        counts = [group.name, f"{group.examples:,}", f"{group.videos:,}"]
        for metric, shown in titles().items():
            given = [group.metrics.get(f"{name}_{metric}") for name in PROTOCOLS]
            cells = ["" if estimate is None else _cell(estimate) for estimate in given]
            table.add_row(*counts, shown, *cells)
            counts = ["", "", ""]
        spans = [_cell(group.metrics[no_span(name)]) for name in PROTOCOLS]
        table.add_row(*counts, "no span", *spans)
        table.add_section()
    out = console()
    out.print(answers.who, markup=False, soft_wrap=True)
    out.print(table)
    if answers.left_out:
        out.print(
            f"{answers.left_out:,} examples of the eval split have no answer and are in no number, "
            f"the first because {answers.because}",
            markup=False,
        )
    out.print(_footnote(found[0]), markup=False)


def _show_comparison(found: Comparison, format: str) -> None:
    if format == "json":
        _print_json({**asdict(found), **_how()})
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("", "A", "B", "A - B", "share of resamples <= 0"):
        table.add_column(name, justify="left" if not name else "right")
    names = {
        f"{name}_{end}": f"{name} {title}"
        for name in PROTOCOLS
        for end, title in PROTOCOLS[name].metrics.items()
    }
    names |= {no_span(name): f"{name} no span" for name in PROTOCOLS if PROTOCOLS[name].reader}
    names["parse_failures"] = "no span"
    for metric, shown in names.items():
        sides = [_value(group.metrics[metric].value) for group in (found.of_a, found.of_b)]
        apart = found.difference.metrics[metric]
        share = apart.share_not_above_zero
        table.add_row(
            shown, *sides, _cell(apart, "+.3f"), ABSENT if share is None else f"{share:.4f}"
        )
    out = console()
    out.print(f"A  {found.a}\nB  {found.b}", markup=False, soft_wrap=True)
    out.print(
        f"{found.shared:,} examples that both answered; {found.only_a:,} only A, "
        f"{found.only_b:,} only B",
        markup=False,
    )
    out.print(table)
    out.print(_footnote(found.difference), markup=False)


def _value(number: float | None, style: str = ".3f") -> str:
    return ABSENT if number is None else f"{number:{style}}"


def _cell(estimate: Estimate, style: str = ".3f") -> str:
    if estimate.value is None or estimate.low is None:
        return _value(estimate.value, style)
    return f"{estimate.value:{style}} [{estimate.low:{style}}, {estimate.high:{style}}]"


def _footnote(group: Group) -> str:
    if group.videos < 2:
        spread = "No intervals: a bootstrap over videos needs at least two."
    else:
        spread = (
            f"[95 % intervals]: bootstrap over {group.videos:,} videos, {RESAMPLES:,} resamples."
        )
    lines = [spread]
    lines += [f"{name}: {PROTOCOLS[name].about}." for name in PROTOCOLS]
    lines.append("No span is IoU 0.")
    if unknown := [name for name in PROTOCOLS if group.metrics[f"{name}_miou"].value is None]:
        lines.append(
            f"{ABSENT}: some answers are of before {', '.join(unknown)} was kept; `videoopd stage "
            "evaluate CONFIG --force` asks them again."
        )
    return "\n".join(lines)


def _how() -> dict[str, Any]:
    return {"interval": 0.95, "resamples": RESAMPLES, "resampled": "videos"}


def _print_json(content: Any) -> None:
    import json

    print(json.dumps(content, indent=1))
