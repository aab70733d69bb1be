"""The child process in which videos are opened: `python -m opd_core.video.decoding`.

A decoder meets files from anywhere. It may crash, hang for ever (decord does, on some ordinary
H.264 files) or eat memory. So decoders run in a process of their own, which `child.py` starts,
asks, and kills. It imports numpy, PyAV and PIL only, so that it starts in a fifth of a second, and
sends back small, resized frames.
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
from collections.abc import Iterable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from opd_core import child_process
from opd_core.video.decoders import PICKERS, ProbedVideo, check_end, decode, probe
from opd_core.video.frame_times import UnusableVideo


def _serve(connection: Connection, decoder: str) -> None:
    if decoder == "decord":
        import decord  # noqa: F401  (missing or broken: now, once, and not with every video)
    connection.send("ready")
    last: list[ProbedVideo] = []
    while True:
        request = connection.recv()
        reply: dict[str, Any] | UnusableVideo
        frames: Iterable[np.ndarray] = ()
        try:
            reply = _answer(request, decoder, last)
            frames = reply.pop("frames", ())
        except UnusableVideo as error:
            reply = error
        except MemoryError:  # the machine's and not the video's: the parent sees the process end
            raise
        except Exception as error:  # the reason goes to the parent; this process serves on
            reply = UnusableVideo(f"cannot be decoded: {error!r}")
        connection.send(reply)
        for frame in frames:
            connection.send_bytes(frame.reshape(-1).data)


def _answer(request: dict[str, Any], decoder: str, last: list[ProbedVideo]) -> dict[str, Any]:
    """One reply. `last` holds the video of the latest probe, which a `decode` then refers to."""
    if request["do"] == "survey":
        return _survey(request["path"])
    if request["do"] == "decode":
        indices, height, width = (request[name] for name in ("indices", "height", "width"))
        frames = decode(last[0], indices, height, width, PICKERS[decoder])
        return {"shape": frames.shape, "frames": frames}
    last[:] = [probe(request["path"])]
    video = last[0]
    return {
        "total_frames": video.total_frames,
        "fps": video.fps,
        "constant": video.times.constant,
        "duration": video.times.duration,
        "height": video.height,
        "width": video.width,
        "seconds": video.times.seconds,
    }


def _survey(path: str) -> dict[str, Any]:
    """All that an import wants to know of a file, of which it decodes the beginning and the end."""
    video = probe(path)
    check_end(video)
    with open(path, "rb") as file:  # noqa: PTH123  (pathlib is not needed in this process)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "duration": video.times.duration,
        "fps": video.fps,
        "codec": video.codec,
        "sha256": digest,
    }


def main() -> None:
    connection = child_process.connect()
    # EOFError, OSError: the parent is gone, or has closed the connection
    with contextlib.suppress(EOFError, OSError):
        _serve(connection, sys.argv[3])


if __name__ == "__main__":
    main()
