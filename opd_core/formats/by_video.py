"""Formats that are one JSON object, a video a key: TimeLens-Bench and ActivityNet Captions.

TimeLens-Bench        {vid: {"duration", "spans": [[s, e], ...], "queries": [...]}}
ActivityNet Captions  {vid: {"duration", "timestamps": [[s, e], ...], "sentences": [...]}}
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from opd_core.annotation_fields import BadAnnotationError, as_object, get
from opd_core.formats.found import Found, LeftOut, annotated, attempt, json_of_videos, paired


def _read(path: Path, spans: str, queries: str) -> Iterator[Found]:
    try:
        for place, video, value in json_of_videos(path):
            try:
                record = as_object(value, "the video's entry")
                pairs = paired(get(record, spans), get(record, queries), (spans, queries))
            except BadAnnotationError as error:
                yield LeftOut(place, video, str(error))
                continue
            for index, (span, query) in enumerate(pairs):
                at = f"{place}#{index}"
                build = partial(annotated, at, video, query, span, duration=record.get("duration"))
                yield attempt(at, video, build)
    except BadAnnotationError as error:
        yield LeftOut(path.name, None, str(error))


def read_timelens_bench(path: Path) -> Iterator[Found]:
    return _read(path, "spans", "queries")


def read_activitynet(path: Path) -> Iterator[Found]:
    return _read(path, "timestamps", "sentences")
