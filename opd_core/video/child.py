"""The process in which videos are opened, as its parent sees it."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from opd_core.child_process import Child, ChildCrash, ChildTimeout
from opd_core.types import VideoOPDError
from opd_core.video.frame_times import UnusableVideo

START_SECONDS = 60.0
"""For a child to start, on the busiest machine; one takes 0.2 s."""


class DecoderProcess(Child):
    """One child. After any exception of `ask` but `UnusableVideo` it is ended, and another is to
    be made."""

    def __init__(self, decoder: str) -> None:
        """Starts it. Raises `VideoOPDError` when it cannot be: no video is to blame for that."""
        super().__init__("opd_core.video.decoding", decoder)
        try:
            with self.killed_at(time.monotonic() + START_SECONDS):
                self.receive()
        except (ChildTimeout, ChildCrash) as error:
            how = f"no answer in {START_SECONDS:g} s"
            if isinstance(error, ChildCrash):
                how = f"it {error}"
            raise VideoOPDError(
                f"the process that decodes videos with {decoder} does not start: {how}; install "
                "what is missing, or set video.decoder"
            ) from None

    def ask(self, request: dict[str, Any], deadline: float) -> dict[str, Any]:
        """The reply of `decoding.py`. `deadline` is of `time.monotonic`.

        Raises `UnusableVideo`, `ChildTimeout` or `ChildCrash`.
        """
        try:
            with self.killed_at(deadline):
                self.send(request)
                reply: dict[str, Any] | UnusableVideo = self.receive()
                if isinstance(reply, dict) and "shape" in reply:
                    reply["frames"] = self._frames(reply.pop("shape"))
        except BaseException:  # Ctrl-C, too: the child owes an answer, which the next would get
            self.end()
            raise
        if isinstance(reply, UnusableVideo):
            raise reply
        return reply

    def _frames(self, shape: tuple[int, ...]) -> np.ndarray:
        """[F, H, W, 3] uint8, which come one by one: a message of all would be copied three times,
        which takes a tenth of the time of decoding."""
        frames = np.empty(shape, np.uint8)
        for frame in frames:
            self.receive_into(frame.reshape(-1).data)
        return frames
