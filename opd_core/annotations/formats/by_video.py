"""Formats that are one JSON object, a video a key: TimeLens-Bench and ActivityNet Captions.

TimeLens-Bench        {vid: {"duration", "spans": [[s, e], ...], "queries": [...]}}
ActivityNet Captions  {vid: {"duration", "timestamps": [[s, e], ...], "sentences": [...]}}
a list a video        {vid: [{"sentence", "timestamp": [s, e]}, ...]}
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from opd_core.annotations.fields import BadAnnotationError
from opd_core.annotations.formats.containers import json_of_videos
from opd_core.annotations.formats.found import Format, Found, LeftOut
from opd_core.annotations.formats.rows import found_in_row


def read_by_video(path: Path) -> Iterator[Found]:
    try:
        for place, video, value in json_of_videos(path):
            row = {"events": value} if isinstance(value, list) else value
            yield from found_in_row(place, row, "the video's entry", video=video)
    except BadAnnotationError as error:
        yield LeftOut(path.name, None, str(error))


BY_VIDEO = Format("JSON of video -> its sentences and spans", read_by_video)
