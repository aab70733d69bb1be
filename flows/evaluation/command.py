"""`videoopd evaluate`: how well a policy or any model answers the eval split, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from flows.console.report import ABSENT, console
from flows.evaluation.answers import Answers, answered_by_model, answered_by_policy, of_policy
from flows.evaluation.groups import Comparison, Group, compare, groups
from flows.stage.models import folder_of
from flows.stage.prepare import WorkLeft, opened
from opd_core.adapter_folder import is_adapter
from opd_core.hub.name import hub_model
from opd_core.spans.bootstrap import RESAMPLES, Estimate
from opd_core.spans.metrics import no_span, titles
from opd_core.spans.protocols.known import PROTOCOLS
from opd_core.types import VideoOPDError

if TYPE_CHECKING:
    from storage.runs.run import Run

OpenRun = Callable[[str], "Run"]


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
    if model is not None and (model := _model_folder(given := model)) is None:
        raise VideoOPDError(
            f"there is no model in {given}; give --model the folder of a Hugging Face checkpoint, "
            "with config.json and its weights, or its name on the hub"
        )
    first = _answered(target, open_run, policy, model, overrides)
    if against is None:
        _show_groups(first, list(groups(first, by)), format)
    elif (other := _model_folder(Path(against))) is not None:
        second = _answered(target, open_run, None, other, overrides)
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
        with opened(
            config, overrides, looking=looking, goes_on=False, stages=("evaluate",)
        ) as work:
            if model is not None:
                return answered_by_model(work, model.resolve())
            return answered_by_policy(work, policy)

    try:
        return answered(looking=True)
    except WorkLeft:
        return answered(looking=False)


def _model_folder(named: Path) -> Path | None:
    """A model's folder, also for its name on the hub; None for what is neither."""
    if (named / "config.json").is_file() or is_adapter(named):
        return named
    model = hub_model(named)
    run = str(named).rpartition("@")[0]  # RUN@3 is none
    if model is None or named.exists() or (run and Path(run).exists()):
        return None
    try:
        return folder_of(model)
    except VideoOPDError as error:
        raise VideoOPDError(f"there is no {named} here, and {error}") from None


def _show_groups(answers: Answers, measured: list[Group], format: str) -> None:
    if format == "json":
        groups = [asdict(group) for group in measured]
        _print_json({"who": answers.who, "left_out": answers.left_out, **_how(), "groups": groups})
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("", "examples", "videos", "", *PROTOCOLS):
        table.add_column(name, justify="left" if not name else "right")
    for group in measured:
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
    out.print(_footnote(measured[0]), markup=False)


def _show_comparison(comparison: Comparison, format: str) -> None:
    if format == "json":
        _print_json({**asdict(comparison), **_how()})
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
        sides = [
            _value(group.metrics[metric].value) for group in (comparison.of_a, comparison.of_b)
        ]
        apart = comparison.difference.metrics[metric]
        share = apart.share_not_above_zero
        table.add_row(
            shown, *sides, _cell(apart, "+.3f"), ABSENT if share is None else f"{share:.4f}"
        )
    out = console()
    out.print(f"A  {comparison.a}\nB  {comparison.b}", markup=False, soft_wrap=True)
    out.print(
        f"{comparison.shared:,} examples that both answered; {comparison.only_a:,} only A, "
        f"{comparison.only_b:,} only B",
        markup=False,
    )
    out.print(table)
    out.print(_footnote(comparison.difference), markup=False)


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
