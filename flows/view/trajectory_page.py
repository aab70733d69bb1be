"""One rollout: its video, the spans on one axis of time, its tokens by what the teacher says.

    /RUN/r/ROLLOUT?t=6.4&token=17&with=OTHER

`with` names what stands beside it: another rollout of the run, another run that is shown (its
answer to the same example), or `RUN2:ROLLOUT`. Words of the table of rollouts (`reason=...`) say
which list one came from, which previous and next go through.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Route

from flows.run_tokenizer import texts_of, tokenizer_folder
from flows.view import time_axis
from flows.view.answers import Answer, answers
from flows.view.files import video_file
from flows.view.listing import neighbours
from flows.view.place import Linker, Place, at_of
from flows.view.rollouts import Asked
from flows.view.trajectory import Trajectory, beside, trajectory
from opd_core.model.prompt_text import prompt_parts
from opd_core.types import UpdateStep, VideoOPDError
from storage.audit.links import base_path

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from storage.runs.run import Run

Context = dict[str, Any]
"""What a template is given."""


@dataclass(frozen=True, slots=True)
class Compared:
    """What stands beside the rollout."""

    name: str
    """Of its run."""
    trajectory: Trajectory | None
    """None: that run has no rollout of the example."""
    answers: tuple[Answer, ...]
    """Of its run to the example, where that is another run."""


def routes(place: Place) -> list[BaseRoute]:
    def page(request: Request) -> Response:
        name, rollout_id = request.path_params["run"], request.path_params["rollout_id"]
        run = place.run(name, at_of(request))
        context: Context = {"name": name, "run": run, "kept": _kept(request)}
        if request.query_params.get("part") == "neighbours":  # which takes as long as all else
            before, after = _neighbours(run, rollout_id, context["kept"])
            context |= {"before": before, "after": after}
            return place.page(request, "trajectory.html", **context)
        shown = trajectory(run, rollout_id, texts_of(run))
        if shown is None:
            raise HTTPException(404, f"there is no rollout {rollout_id!r} in {name}")
        compared = _compared(place, request, name, run, shown)
        context |= _of_rollout(run, shown, compared) | _links(request, name, rollout_id)
        return place.page(request, "trajectory.html", before=None, after=None, **context)

    return [Route("/{run}/r/{rollout_id}", page)]


def _of_rollout(run: Run, shown: Trajectory, compared: Compared | None) -> Context:
    """What the template shows of a rollout, and of the one beside it."""
    stamps = shown.rollout.frame_timestamps
    duration = shown.example.duration if shown.example else max(stamps, default=0.0)
    duration = max(duration, *stamps, 0.1)
    other = compared.trajectory if compared else None
    also = [a for a in other.answers if a.rollout_id == other.rollout.rollout_id] if other else []
    return {
        "shown": shown,
        "compared": compared,
        "compared_name": compared.name if compared else None,
        "duration": duration,
        "stamps": json.dumps([round(s, 3) for s in stamps]),
        "rows": time_axis.rows(shown, duration, also),
        "ticks": time_axis.ticks(duration),
        "bars_of": lambda answer: time_axis.bars([answer.span] if answer.span else [], duration),
        "step": _step(shown),
        "focus": json.loads(shown.selection.settings) if shown.selection else {},
        **_question(run, shown),
        **_video(run, shown),
    }


def _links(request: Request, name: str, rollout_id: str) -> Context:
    """How the template names other rollouts, its own page with one of them beside it too. What is
    pinned is this run, and no other."""
    link, kept, at = Linker(request), _kept(request), at_of(request)

    def link_of(of: str, other: str) -> str:
        return link(of, "r", other, at=at if of == name else None, **kept)

    def beside_link(of: str, other: str) -> str:
        return link(name, "r", rollout_id, **{"with": f"{of}:{other}"}, **kept)

    return {"link_of": link_of, "beside_link": beside_link}


def _step(shown: Trajectory) -> UpdateStep | None:
    """The optimiser step that met the rollout first."""
    if shown.trained is None or shown.update is None:
        return None
    return next((s for s in shown.update.steps if s.step == shown.trained.step), None)


def _video(run: Run, shown: Trajectory) -> Context:
    try:
        if shown.example is None:
            raise VideoOPDError(f"{run.path} has no example {shown.rollout.example_id} any more")
        video_file(run, shown.example)
    except VideoOPDError as error:
        return {"video_problem": str(error)}
    return {"video_problem": None}


def _question(run: Run, shown: Trajectory) -> Context:
    """The prompt by the run's tokenizer, or why it cannot be read."""
    try:
        folder = tokenizer_folder(run)
        if folder is None:
            raise VideoOPDError(
                f"no checkpoint of {run.path} has a tokenizer any more; put tokenizer.json into its"
                " newest policy to read the prompt"
            )
        parts = prompt_parts(folder, base_path(run), shown.rollout.prompt_token_ids)
    except VideoOPDError as error:
        return {"question": (), "question_problem": str(error)}
    return {"question": parts, "question_problem": None}


def _compared(
    place: Place, request: Request, name: str, run: Run, shown: Trajectory
) -> Compared | None:
    """What `with=` names. Raises `HTTPException` (404) where there is no such rollout or run."""
    wanted = request.query_params.get("with")
    if not wanted:
        return None
    other_name, _, rollout_id = wanted.rpartition(":")
    if wanted in place.shown:
        other_name, rollout_id = wanted, ""
    other_name = other_name or name
    is_same = other_name == name
    other = run if is_same else place.run(other_name)
    texts = texts_of(other)
    example_id = shown.rollout.example_id
    given = () if is_same else answers(other, example_id, texts)
    rollout_id = rollout_id or _counterpart(given, shown) or ""
    found = trajectory(other, rollout_id, texts) if rollout_id else None
    if rollout_id and found is None:
        raise HTTPException(404, f"there is no rollout {rollout_id!r} in {other_name}")
    return Compared(other_name, found, given)


def _counterpart(given: tuple[Answer, ...], shown: Trajectory) -> str | None:
    """Of another run's answers the one that is most like the rollout: of its policy and place in
    the group, else of its policy, else of the newest."""
    version, index = shown.rollout.policy_version, shown.rollout.sample_index

    def likeness(answer: Answer) -> tuple[bool, bool, int]:
        same = answer.policy_version == version
        return same, same and answer.sample_index == index, answer.policy_version

    rollouts = [a for a in given if a.rollout_id is not None]
    return max(rollouts, key=likeness).rollout_id if rollouts else None


def _kept(request: Request) -> dict[str, str]:
    """The words of the URL that say which list one came from; they go on to the next rollout."""
    known = {field.name for field in fields(Asked)}
    return {key: value for key, value in request.query_params.items() if key in known}


def _neighbours(
    run: Run, rollout_id: str, kept: Mapping[str, str]
) -> tuple[str | None, str | None]:
    """The rollouts before and after one in the list that one came from, else in order of id."""
    if not kept:
        return beside(run, rollout_id)
    return neighbours(run, Asked.parse([*kept.items()]), rollout_id)
