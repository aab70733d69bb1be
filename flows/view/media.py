"""Video files of a run's examples and the frames that a model saw, for the pages.

/RUN/video/EXAMPLE        the file, with Range requests, so that a browser seeks in it
/RUN/frames/ROLLOUT       what there is of the frames of a rollout, as JSON
/RUN/frame/ROLLOUT/3      the fourth of them, a picture
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Route

from flows.view.files import Frames, NoVideoError, OutsideError, video_file
from flows.view.place import Place, at_of
from opd_core.types import GroundingExample, Rollout, VideoOPDError
from opd_core.video.reader import VideoError
from opd_core.video.seen import picture

if TYPE_CHECKING:
    from starlette.requests import Request

    from storage.runs.run import Run

TYPES = {
    ".mp4": "video/mp4",
    ".m4v": "video/mp4",
    ".mov": "video/quicktime",
    ".webm": "video/webm",
    ".mkv": "video/x-matroska",
    ".avi": "video/x-msvideo",
    ".ts": "video/mp2t",
    ".mpg": "video/mpeg",
    ".mpeg": "video/mpeg",
    ".ogv": "video/ogg",
    ".flv": "video/x-flv",
    ".wmv": "video/x-ms-wmv",
    ".3gp": "video/3gpp",
}
NO_TYPE = "application/octet-stream"


def routes(place: Place) -> list[BaseRoute]:
    frames = Frames()

    def video(request: Request) -> Response:
        run = place.run(request.path_params["run"], at_of(request))
        example = _example(run, request.path_params["example_id"])
        try:
            path = video_file(run, example)
        except OutsideError as error:
            raise HTTPException(403, str(error)) from None
        except NoVideoError as error:
            raise HTTPException(404, str(error)) from None
        kind = TYPES.get(path.suffix.lower(), NO_TYPE)
        return FileResponse(path, media_type=kind, headers={"Cache-Control": "private, no-cache"})

    def seen(request: Request) -> Response:
        run = place.run(request.path_params["run"], at_of(request))
        rollout = _rollout(run, request.path_params["rollout_id"])
        try:
            found = frames.of(run, rollout, _example(run, rollout.example_id))
        except (VideoOPDError, VideoError) as error:
            return JSONResponse({"count": 0, "problem": str(error)})
        count, height, width, _ = found.frames.shape
        return JSONResponse(
            {
                "count": count, "pixels": rollout.pixel_hash, "width": width, "height": height,
                "source": found.source, "same": found.same,
            }
        )  # fmt: skip

    def frame(request: Request) -> Response:
        run = place.run(request.path_params["run"], at_of(request))
        rollout = _rollout(run, request.path_params["rollout_id"])
        number = _number(request.path_params["number"])
        try:
            found = frames.of(run, rollout, _example(run, rollout.example_id))
        except (VideoOPDError, VideoError) as error:
            raise HTTPException(404, str(error)) from None
        if number >= len(found.frames):
            raise HTTPException(404, f"{rollout.rollout_id} has {len(found.frames)} frames")
        content, kind = picture(found.frames[number])
        # Pages ask with the hash of the pixels in the URL.
        return Response(content, media_type=kind, headers={"Cache-Control": "private, max-age=600"})

    return [
        Route("/{run}/video/{example_id}", video),
        Route("/{run}/frames/{rollout_id}", seen),
        Route("/{run}/frame/{rollout_id}/{number}", frame),
    ]


def _number(text: str) -> int:
    """Raises `HTTPException` (404) for what is no number of a frame."""
    if not text.isdecimal() or len(text) > 9:
        raise HTTPException(404, "a frame has a whole number, 0 for the first")
    return int(text)


def _example(run: Run, example_id: str) -> GroundingExample:
    """Raises `HTTPException` (404) where the run has none of that id."""
    found = run.last_known_examples(pl.col("example_id") == example_id)
    if not found:
        raise HTTPException(404, f"there is no example {example_id!r} in {run.path.name}")
    return found[0]


def _rollout(run: Run, rollout_id: str) -> Rollout:
    """Raises `HTTPException` (404) where the run has none of that id."""
    found = run.read("rollouts", Rollout, pl.col("rollout_id") == rollout_id)
    if not found:
        raise HTTPException(404, f"there is no rollout {rollout_id!r} in {run.path.name}")
    return found[0]
