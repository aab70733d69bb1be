"""Whether most of a stage's videos are missing, at its start or later: then it is not they."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress

from opd_core import faults
from opd_core.annotations.timelens import read_timelens
from opd_core.config.load import Config
from opd_core.types import GroundingExample, QuarantinedItem, VideoOPDError
from opd_core.video.presence import refuse_missing


class VideosThere:
    """Of all `examples` of a stage, also where what is left of it is less."""

    def __init__(self, config: Config, stage: str, examples: Sequence[GroundingExample]) -> None:
        self._config, self._examples = config, examples
        # A draw may be small; an evaluation's videos have to be there in any case.
        self._among = None if stage == "evaluate" else self._annotated
        self._unreadable: set[str | None] = set()

    def check(self, set_aside: Sequence[QuarantinedItem] | None = None) -> None:
        """At the start, or when some were `set_aside`. Raises `VideoOPDError` where most are not
        there or cannot be read."""
        if set_aside is not None:
            lost = {q.video_path for q in set_aside if q.kind == faults.NO_FILE}
            if not lost:
                return
            self._unreadable |= lost
        if self._examples:
            names = (e.video_path for e in self._examples)
            refuse_missing(self._config.data.videos, names, self._unreadable, self._among)

    def _annotated(self) -> Iterator[str]:
        """Videos of the training annotations, as far as these can be read."""
        with suppress(VideoOPDError):
            for item in read_timelens(self._config.data.train, "train"):
                if isinstance(item, GroundingExample):
                    yield item.video_path
