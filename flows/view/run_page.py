"""The page of a run: its rounds as curves, its steps, what it cost, and what became of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from starlette.routing import BaseRoute, Route

from flows.audit import outcome
from flows.numbers import rounds, stages, steps
from flows.numbers.round_state import round_state
from flows.stage.left_out import left_out
from flows.view import run_curves
from flows.view.kept import Kept
from flows.view.place import Place, at_of
from flows.view.run_curves import Drawn
from flows.view.run_facts import lineage
from opd_core.types import VideoOPDError

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from storage.runs.run import Run

Value = TypeVar("Value")

SHOWN_ROUNDS = 50
"""The newest ones, in the table; the curves have all."""
BESIDE = "beside"
"""`?beside=NAME`, several times: the runs whose curves are drawn, too; absent: all that are shown,
empty: none."""


def routes(place: Place) -> list[BaseRoute]:
    kept = Kept()

    def run_page(request: Request) -> Response:
        name = request.path_params["run"]
        asked = _others(place, name, request.query_params.getlist(BESIDE))
        others, unreadable = _readable(place, asked)
        if (same := place.same(request, name, *others)) is not None:
            return same
        at = at_of(request)
        run = place.run(name, at)
        beside = {other: opened for other in others if (opened := _as_of(place, other, at))}
        drawn = [_drawn(place, kept, *one) for one in ({name: run} | beside).items()]
        own = drawn[0]
        return place.page(
            request, "run.html", name=name, run=run,
            others=_toggles(place, name, asked), left_out_beside=sorted({*others} - {*beside}),
            unreadable=unreadable, evaluated=uneven(drawn),
            rounds=own.rounds.reverse().head(SHOWN_ROUNDS).to_dicts(),
            finished=run.finished_rounds(),
            earlier=max(0, own.rounds.height - SHOWN_ROUNDS),
            round_charts=run_curves.round_charts(drawn),
            step_charts=run_curves.step_charts(drawn),
            stage_charts=run_curves.stage_charts(drawn),
            going_on=None if run.round is not None else _of_rows(kept, name, run, round_state),
            running_steps=own.steps["running"].sum(),
            left_out=_of_rows(kept, name, run, left_out),
            lineage=lineage(run), audit=outcome.last(run.path),
        )  # fmt: skip

    return [Route("/{run}", run_page)]


def _of_rows(kept: Kept, name: str, run: Run, compute: Callable[[Run], Value]) -> Value:
    """What is computed of the tables alone, once for each version of them."""
    rows = tuple(run.tables.versions().values())
    return kept((name, run.round, compute), (run.version, rows), lambda: compute(run))


def _others(place: Place, name: str, asked: list[str]) -> list[str]:
    """The names of the runs that are drawn beside `name`."""
    return [other for other in place.shown if other != name and (not asked or other in asked)]


def _readable(place: Place, names: list[str]) -> tuple[list[str], dict[str, str]]:
    """Those whose tables can be read, and why the rest cannot: a run that was moved away takes no
    page of another one with it."""
    readable, problems = [], {}
    for name in names:
        try:
            place.state(name)
            place.run(name)
        except VideoOPDError as error:
            problems[name] = str(error)
        else:
            readable.append(name)
    return readable, problems


def _toggles(place: Place, name: str, others: list[str]) -> list[tuple[str, bool, list[str]]]:
    """Each other run: whether it is drawn, and what `?beside=` is to be to turn that round."""
    return [
        (other, other in others, [o for o in place.shown if (o in others) != (o == other)
                                  and o != name] or [""])
        for other in place.shown
        if other != name
    ]  # fmt: skip


def _as_of(place: Place, name: str, at: int | None) -> Run | None:
    """A run beside the page's, as of the same round; None: it has not finished that one."""
    if at is not None and at not in place.run(name).finished_rounds():
        return None
    return place.run(name, at)


def uneven(drawn: Sequence[Drawn]) -> list[tuple[str, int]]:
    """Each run with the most examples a policy of it was evaluated on, where that is not the same
    of all: then their means do not compare."""
    counts = [(one.name, one.rounds["eval_examples"].max()) for one in drawn]
    known = [(name, count) for name, count in counts if isinstance(count, int)]
    return known if len({count for _, count in known}) > 1 else []


def _drawn(place: Place, kept: Kept, name: str, run: Run) -> Drawn:
    return Drawn(
        name,
        list(place.shown).index(name) % 8 + 1,
        _of_rows(kept, name, run, rounds.rounds),
        steps.steps(run),
        stages.stages(run),
    )
