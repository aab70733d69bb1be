"""A study's outcome in three files: the table and verdicts in words, the plots, and all numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic_core import to_json

from flows.study.claims import Claim, JudgedRow
from flows.study.curves import Interval, tuning_means
from flows.study.evidence import ArmRow, Evidence
from flows.study.plot import plot
from flows.study.wrongness import Wrongness
from opd_core.tinyworld.wrongness import BAD_BELOW

ABSENT = "–"


def write_report(evidence: Evidence, folder: Path) -> list[Path]:
    """Write `<name>.md`, `.svg` and `.json`; returns their paths. The same evidence gives the same
    files."""
    folder.mkdir(parents=True, exist_ok=True)
    table, picture, numbers = (
        folder / f"{evidence.plan.name}.{kind}" for kind in ("md", "svg", "json")
    )
    plot(evidence.by_arm, picture)
    # JSON has no infinity: a bound that was never reached is null there.
    numbers.write_bytes(to_json(as_numbers(evidence), indent=1, inf_nan_mode="null") + b"\n")
    table.write_text("\n\n".join(_blocks(evidence, picture.name, numbers.name)) + "\n")
    return [table, picture, numbers]


def as_numbers(evidence: Evidence) -> dict[str, Any]:
    """Everything that the table and the plots are drawn from; no path of this machine."""
    study = evidence.plan.study.model_dump(mode="json")
    study["base"] = evidence.plan.study.base.name
    return {
        "study": study,
        "sessions": list(evidence.sessions),
        "missing": dict(evidence.missing),
        "cpu_seconds": evidence.cpu_seconds,
        "arms": evidence.rows,
        "claims": evidence.claims,
        "annotations": evidence.wrongness,
        "tuning": [_without_examples(asdict(r)) for r in evidence.tuning],
        "runs": [_without_examples(asdict(r)) for r in evidence.results],
    }


def _without_examples(result: dict[str, Any]) -> dict[str, Any]:
    for point in result["points"]:
        del point["examples"]  # they are in the run's `draws`
    return result


def _blocks(evidence: Evidence, picture: str, numbers: str) -> Iterator[str]:
    """Headings, paragraphs and tables of the report."""
    plan = evidence.plan
    yield f"# Study `{plan.name}`"
    yield (
        f"Written by `videoopd study {plan.file}{' --quick' if plan.quick else ''}`; do not edit.\n"
        f"All numbers are in [{numbers}]({numbers})."
    )
    if evidence.sessions:
        yield "\n".join(
            f"- `{s['command']}`, begun {s['began']}, commit {s['commit'] or 'no commit'}: \n"
            f"  {s['machine']}"
            for s in evidence.sessions
        )
    yield f"![mIoU and R1@0.7 of each arm]({picture})"
    yield (
        "Means over seeds against three costs, with 95 % bands. In brackets: mIoU and R1@0.7 of "
        "what trains nothing, where the line itself may lie outside."
    )
    yield "## Arms"
    yield "\n".join(_table(evidence.rows))
    yield "\n".join(_recalls(evidence.rows))
    yield (
        f"All runs, tuning included: {evidence.cpu_seconds:,.0f} CPU seconds, or "
        f"{evidence.cpu_seconds / 60:.0f} minutes of one core."
    )
    yield from _definitions(evidence)
    yield from _annotations(evidence.wrongness)
    if evidence.claims:
        yield "## Claims"
    for claim in evidence.claims:
        yield f"**{claim.name}: {claim.verdict}.** Claimed: {claim.statement}."
        yield "\n".join(_comparisons(claim))
    yield "## Learning rates"
    yield from _rates(evidence)
    if evidence.missing:
        yield "## Missing"
        yield "\n".join(f"- `{run}`: {reason}" for run, reason in sorted(evidence.missing.items()))
    if evidence.resumed:
        yield "## Killed and continued"
        yield (
            "Their cost is the sum of all attempts, a killed stage's up to its last second:\n"
            + "; ".join(evidence.resumed)
            + "."
        )


def _table(rows: Sequence[ArmRow]) -> Iterator[str]:
    yield (
        "| arm | | learning rate | seeds | rounds | steps | tokens | CPU s | mIoU, last round "
        "| above base | best mIoU |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|---|"
    for r in rows:
        rate = ABSENT if r.learning_rate is None else f"{r.learning_rate:g}"
        gained = ABSENT if r.above_base is None else with_interval(r.above_base, "+")
        yield (
            f"| `{r.arm}` | {r.title} | {rate} | {r.seeds} | {r.rounds} | {r.steps:.0f} "
            f"| {r.tokens / 1000:,.0f} k | {r.cpu_seconds:.0f} | {with_interval(r.miou)} "
            f"| {gained} | {r.best_miou:.3f} |"
        )


def _recalls(rows: Sequence[ArmRow]) -> Iterator[str]:
    yield "| arm | R1@0.3 | R1@0.5 | R1@0.7 | no span, % | seconds longer |"
    yield "|---|---|---|---|---|---|"
    for r in rows:
        recalls = " | ".join(in_points(i) for i in (r.r1_30, r.r1_50, r.r1_70, r.no_span))
        longer = ABSENT if r.seconds_longer is None else with_interval(r.seconds_longer, "+")
        yield f"| `{r.arm}` | {recalls} | {longer} |"


def _annotations(wrongness: Wrongness) -> Iterator[str]:
    yield "## The annotations"
    yield (
        f"Of {wrongness.sentences:,} training sentences {wrongness.bad:.1%} are annotated badly: "
        f"their IoU with the truth is below {BAD_BELOW:g}. Annotated moments are "
        f"{wrongness.seconds_longer:+.2f} s longer than the true ones, on average."
    )
    if not wrongness.filtering:
        return
    yield (
        f"TRPV as a filter of bad annotations, on the {wrongness.judged:,} sentences that the "
        "teacher answered: what `focus.min_teacher_iou` drops. *Precision*: the share of the "
        "dropped that are bad; *recall*: the share of the bad that are dropped."
    )
    lines = ["| min_teacher_iou | dropped | precision | recall |", "|---|---|---|---|"]
    lines += [
        f"| {f.min_teacher_iou:.1f} | {f.dropped:.1%} | {_share(f.precision)} "
        f"| {_share(f.recall)} |"
        for f in wrongness.filtering
    ]
    yield "\n".join(lines)


def _share(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.1%}"


def _definitions(evidence: Evidence) -> Iterator[str]:
    study = evidence.plan.study
    same, compared, smallest = evidence.same_examples()
    yield (
        "Means over seeds with 95 % t-intervals. mIoU, and R1 in points, of greedy answers to the "
        f"eval split of each seed's world ({study.world.eval_videos} videos), protocol `strict`. "
        "*Above base* is paired with the same run's policy 0. *Best* is the highest of the rounds' "
        "means, chosen on the eval split and therefore a little too good. *Seconds longer* is how "
        "far an arm has learned to answer too widely: the mean of answered - true length over the "
        "answers with a span, each cut at the end of its video."
    )
    yield (
        "*CPU s*: seconds of processor time of the run's process and its children, one thread, in "
        "all stages of its rounds and between them. It stands for wall-clock on a core of one's "
        "own, because the machine is shared. Left out, alike for all: evaluation, opening the run, "
        "decoding (the frame store was filled before), the Prefect server. *Tokens*: positions "
        "that passed through student or teacher in sampling, scoring, the forward pass of the "
        "update and the teacher's own answers; a prefix tree counts its video once. Between rounds "
        "curves are linear, and a mean goes as far as every seed does."
    )
    yield (
        f"*Equal data*: the draw is seeded by run and round, before anything is known of the arm; "
        f"{same} of {compared} rounds worked on the very examples of the first arm with that seed"
        + ("." if same == compared else f" (the least alike shares {smallest:.0%}).")
        + " What an arm then leaves out (TRPV, DBTP) is its own, so its steps may be fewer. *Equal "
        "optimiser*: the same for all but the learning rate, chosen for each arm from one grid by "
        f"the mIoU at the last round on the {study.world.tune_videos} tune videos of "
        f"{_seeds(evidence)}, which no other number is made of."
    )


def _comparisons(claim: Claim) -> Iterator[str]:
    yield "| | measured | 95 % interval | holds if | |"
    yield "|---|---|---|---|---|"
    for c in claim.comparisons:
        wanted = f"> {c.bound:g}" if c.kind == "difference" else f"<= {c.bound:.2f}"
        yield f"| {c.what} | {measured(c)} | {bounds(c)} | {wanted} | {_verdict(c)} |"


def _verdict(comparison: JudgedRow) -> str:
    if comparison.low is None or comparison.high is None:
        return f"{comparison.verdict} (no interval)"
    if comparison.verdict != "not settled":
        return comparison.verdict
    covered = "zero" if comparison.bound == 0 else "the bound"
    return f"not settled (the interval covers {covered})"


def measured(comparison: JudgedRow) -> str:
    """The value in words."""
    if comparison.value is None:
        return "the other never rises"
    if math.isinf(comparison.value):
        return "never reached"
    return f"{comparison.value:{'+' if comparison.kind == 'difference' else ''}.3f}"


def bounds(comparison: JudgedRow) -> str:
    """The 95 % interval in words."""
    if comparison.low is None or comparison.high is None:
        return ABSENT
    return " to ".join(
        f"{v:.3f}" if math.isfinite(v) else "never" for v in (comparison.low, comparison.high)
    )


def _rates(evidence: Evidence) -> Iterator[str]:
    rates = evidence.plan.study.learning_rates
    if not evidence.tuning:
        yield f"One for all: {rates[0]:g}."
        return
    yield f"mIoU on the tune split at the last round, {_seeds(evidence)}:"
    lines = ["| arm | " + " | ".join(f"{rate:g}" for rate in rates) + " |"]
    lines.append("|---" * (len(rates) + 1) + "|")
    for arm, mious in tuning_means(evidence.tuning, evidence.plan.study.tune_seeds).items():
        texts = {rate: f"{mious[rate]:.3f}" if rate in mious else ABSENT for rate in rates}
        texts[evidence.tuned[arm]] = f"**{texts[evidence.tuned[arm]]}**"
        lines.append(f"| `{arm}` | " + " | ".join(texts.values()) + " |")
    yield "\n".join(lines)


def _seeds(evidence: Evidence) -> str:
    """The tune seeds in words."""
    seeds = evidence.plan.study.tune_seeds
    return ("seed " if len(seeds) == 1 else "seeds ") + ", ".join(map(str, seeds))


def with_interval(interval: Interval, sign: str = "") -> str:
    """Mean and half width, in thousandths."""
    mean = f"{interval.mean:{sign}.3f}"
    if interval.low is None or interval.high is None:
        return mean
    return f"{mean} ± {interval.high - interval.mean:.3f}"


def in_points(share: Interval) -> str:
    """A share's mean and half width in hundredths, as the field's tables have it."""
    mean = f"{100 * share.mean:.1f}"
    if share.low is None or share.high is None:
        return mean
    return f"{mean} ± {100 * (share.high - share.mean):.1f}"
