"""The pages of `videoopd view` as one application: the routes of each page, behind the guard."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

from polars.exceptions import PolarsError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from flows.charts.svg import style
from flows.view import media, rollouts_page, run_page, trajectory_page
from flows.view.guard import Guard
from flows.view.place import HERE, Linker, Place
from opd_core.types import VideoOPDError
from storage.tables.damage import first_damage

if TYPE_CHECKING:
    from starlette.requests import Request

PAGES = (rollouts_page, trajectory_page, media, run_page)
"""Each has `routes(place)`; the first route that a path fits answers it."""


def _state(place: Place, name: str) -> str:
    """Where a run is, in a few words; why it cannot be read."""
    try:
        return f"policy {place.run(name).newest_version()}"
    except VideoOPDError as error:
        return str(error)


def make_app(place: Place, key: str, port: int) -> Starlette:
    """The application that shows the runs of `place` to whoever has the key."""

    def runs(request: Request) -> Response:
        if len(place.shown) == 1:
            return RedirectResponse(Linker(request)(*place.shown))
        return place.page(
            request, "runs.html", states={name: _state(place, name) for name in place.shown}
        )

    def failed(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 400
        said = error.detail if isinstance(error, HTTPException) else str(error)
        headline = HTTPStatus(status).phrase
        return place.page(request, "error.html", status, said=said, headline=headline)

    def damaged(request: Request, error: Exception) -> Response:
        """A page of a run whose tables are damaged says which file; any other error is ours."""
        for shown in place.shown.values():
            if said := first_damage(shown.path / "tables"):
                return place.page(request, "error.html", 500, said=said, headline="Damaged")
        raise error

    routes: list[BaseRoute] = [
        Route("/", runs),
        Route("/static/chart.css", lambda _: Response(style(), media_type="text/css")),
        Mount("/static", StaticFiles(directory=HERE / "static"), name="static"),
        *(route for page in PAGES for route in page.routes(place)),
    ]
    return Starlette(
        routes=routes,
        middleware=[Middleware(Guard, key=key, port=port)],
        exception_handlers={HTTPException: failed, VideoOPDError: failed}
        | dict.fromkeys((OSError, ValueError, PolarsError), damaged),
    )
