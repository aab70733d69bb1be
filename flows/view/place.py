"""The runs that a server shows, by short names, and how a page about one of them is answered.

A page module has `routes(place)`; `app.py` joins them. A page asks `place.run(name, at)` for the
run that its URL names, and answers with `place.page(...)`. Asked with `?part=NAME` the same page
answers only its template's `{% block NAME %}`: so a script refreshes a part of it.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, Response

from flows.view import formats
from opd_core.types import VideoOPDError
from storage.runs.run import Run
from storage.tables import history

if TYPE_CHECKING:
    from starlette.requests import Request

HERE = Path(__file__).parent
RESERVED = ("static", "favicon.ico")
"""First words of paths that are no run's."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A run as it was named on the command line."""

    name: str
    """In URLs; no two are the same."""
    path: Path
    round: int | None
    """RUN@3: nothing later than round 3 is shown."""


class Place:
    """What is shown: runs by name, and the pages' templates."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.shown = {shown.name: shown for shown in _named(runs)}
        self._open: dict[tuple[str, int | None], tuple[tuple[object, ...], Run]] = {}
        self._now: dict[str, tuple[tuple[str, str], Run]] = {}
        self._served_by = secrets.token_hex(8)
        self._templates = Environment(
            loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined,
            trim_blocks=True, lstrip_blocks=True,
        )  # fmt: skip
        self._templates.filters |= formats.FILTERS

    def run(self, name: str, at: int | None = None) -> Run:
        """The run of that name as it is now, or as of round `at`; opened anew where it has changed.

        Raises `HTTPException` (404) where no run of that name is shown, `VideoOPDError` where it
        has not finished that round, or is shown as of an earlier one.
        """
        shown = self._shown(name)
        number = shown.round if at is None else at
        if shown.round is not None and number is not None and number > shown.round:
            raise VideoOPDError(
                f"run {name} is shown as of round {shown.round}; start `videoopd view` with the run"
                f" itself to see round {number}"
            )
        stamp = self._opened_from(name, number)
        known = self._open.get((name, number))
        if known is None or known[0] != stamp:
            known = (stamp, Run.open(shown.path, number))
            self._open[name, number] = known
        return known[1]

    def state(self, name: str) -> str:
        """What changes whenever anything of the run does that a page shows; a few milliseconds.

        The versions of its tables, and the small files beside them: steps of a running update,
        manifests of policies, what stages took, what the last audit said.
        """
        run = self._live(name)
        parts = [f"{table}={version}" for table, version in run.tables.versions().items()]
        parts += [_stamp(file) for file in _small_files(run.path)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]

    def same(self, request: Request, *names: str) -> Response | None:
        """304 where the browser has this page of these runs as they are; None: it is to be made.

        Asked before anything of the runs is read, so that what comes meanwhile makes another page.
        A part of a page has the page's own ETag.
        """
        return self.same_as(request, *map(self.state, names))

    def same_as(self, request: Request, *states: str) -> Response | None:
        """As `same`, of a page that is made of no more than these say.

        A page of another server is never the same: at this address may have been the run as of a
        round, or an older program.
        """
        words = [(k, v) for k, v in request.query_params.multi_items() if k != "part"]
        asked = [self._served_by, request.url.path, urlencode(words), *states]
        etag = f'"{hashlib.sha256("|".join(asked).encode()).hexdigest()[:32]}"'
        request.state.etag = etag
        if request.headers.get("if-none-match") == etag:
            return Response(status_code=304, headers=_headers(request))
        return None

    def page(self, request: Request, template: str, status: int = 200, **context: Any) -> Response:
        """A page, or the block of it that `?part=` names; with an ETag where `same` was asked.

        Its template finds `request`, `place`, `at`, `link` and `etag` beside the context.
        """
        made = self._templates.get_template(template)
        context |= {"request": request, "place": self, "at": _at(request), "link": Linker(request)}
        context["etag"] = getattr(request.state, "etag", "")
        if (part := request.query_params.get("part")) is None or status != 200:
            return HTMLResponse(made.render(context), status, headers=_headers(request))
        if part not in made.blocks:
            raise HTTPException(404, f"this page has no part {part!r}")
        text = "".join(made.blocks[part](made.new_context(context)))
        return HTMLResponse(text, headers=_headers(request))

    def _shown(self, name: str) -> Shown:
        if name not in self.shown:
            known = ", ".join(self.shown)
            raise HTTPException(404, f"there is no run {name!r} here; shown are: {known}")
        return self.shown[name]

    def _live(self, name: str) -> Run:
        """The run as it is now, whatever round it is shown at; opened anew where it is another."""
        path = self._shown(name).path
        stamp = (_stamp(path / "run.json"), _stamp(path / "tables" / "format.json"))
        known = self._now.get(name)
        if known is None or known[0] != stamp:
            known = self._now[name] = (stamp, Run.open(path))
        return known[1]

    def _opened_from(self, name: str, number: int | None) -> tuple[object, ...]:
        """What changes where an opened run is to be opened again; under a millisecond."""
        run = self._live(name)
        tags = None if number is None else sorted(history.tags(run.tables.folder, "updates"))
        return (self._now[name][0], run.tables.version("reruns"), str(tags))


def at_of(request: Request) -> int | None:
    """The round that a page is pinned to: `?at=3`. Raises `HTTPException` (400) for no number."""
    text = request.query_params.get("at")
    if text is not None and not _is_round(text):
        said = text if len(text) <= 60 else f"{text[:59]}…"
        raise HTTPException(400, f"at={said!r} is no round; give a whole number, as in at=3")
    return _at(request)


def _at(request: Request) -> int | None:
    """As `at_of`; None for what is no number: the page that says so has links, too."""
    text = request.query_params.get("at", "")
    return int(text) if _is_round(text) else None


def _is_round(text: str) -> bool:
    """Of no more digits than a number of a round has: Python refuses to read thousands."""
    return text.isdecimal() and len(text) <= 9


class Linker:
    """Makes links that keep the round that a page is pinned to.

    `link("tiny", "rollouts", sort="iou")` is `/tiny/rollouts?at=3&sort=iou` on a page of round 3; a
    None leaves a word out, `at=None` too.
    """

    def __init__(self, request: Request) -> None:
        self._at = _at(request)

    def __call__(self, *parts: object, **query: object) -> str:
        path = "/" + "/".join(quote(str(part), safe="") for part in parts)
        words = [(k, v) for k, v in ({"at": self._at} | query).items() if v is not None]
        return f"{path}?{urlencode(words, doseq=True)}" if words else path


def _named(runs: Sequence[Run]) -> list[Shown]:
    """Each by its folder's name; the second of a name is called so with `-2`."""
    made: list[Shown] = []
    taken = set(RESERVED)
    for run in runs:
        name, number = run.path.name, 1
        while name in taken:
            number += 1
            name = f"{run.path.name}-{number}"
        taken.add(name)
        made.append(Shown(name, run.path, run.round))
    return made


def _small_files(run: Path) -> list[Path]:
    beside = [run / "audit.json", run / ".cache" / "stages.jsonl"]
    return [*beside, *sorted(run.glob("trainer/*")), *sorted(run.glob("policies/*/manifest.json")),
            *sorted(run.glob("tables/*.lance/_refs/tags"))]  # fmt: skip


def _stamp(file: Path) -> str:
    try:
        found = file.stat()
    except OSError:
        return f"{file}: none"
    return f"{file} {found.st_mtime_ns} {found.st_size}"


def _headers(request: Request) -> dict[str, str]:
    etag = getattr(request.state, "etag", None)
    return {"Cache-Control": "private, no-cache"} | ({"ETag": etag} if etag else {})
