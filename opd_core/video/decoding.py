"""The child process in which videos are opened: `python -m opd_core.video.decoding`.

A decoder meets files from anywhere. It may crash, hang for ever (decord does, on some ordinary
H.264 files) or eat memory, and no thread can be stopped; a process can. So decoders run in a
process of their own, which `opd_core/video/child.py` starts, asks, and kills. It imports numpy,
PyAV and PIL only, so that it starts in a fifth of a second, and sends back small, resized frames.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import queue
import select
import signal
import sys
import threading
from typing import Any, BinaryIO

from opd_core.video.child import MESSAGE
from opd_core.video.decoders import PICKERS, Picker, ProbedVideo, check_end, decode, probe
from opd_core.video.frame_times import UnusableVideo

PARENT_CHECK_SECONDS = 2.0


def _answer(
    request: dict[str, Any], pick: Picker, last: list[ProbedVideo]
) -> tuple[dict[str, Any], bytes]:
    """One reply. `last` holds the video of the latest probe, which a `decode` then refers to."""
    if request["do"] == "survey":
        return _survey(request["path"]), b""
    if request["do"] == "probe":
        last[:] = [probe(request["path"])]
        video = last[0]
        times = video.times
        return {
            "total_frames": video.total_frames,
            "fps": video.fps,
            "constant": times.constant,
            "duration": times.duration,
            "height": video.height,
            "width": video.width,
        }, times.seconds.tobytes()
    frames = decode(last[0], request["indices"], request["height"], request["width"], pick)
    return {"shape": frames.shape}, frames.tobytes()


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


def _receive(stream: BinaryIO, parent: int, requests: queue.SimpleQueue[dict[str, Any]]) -> None:
    """Reads requests; ends the process, whatever a decoder is doing, when the parent is gone."""
    read = functools.partial(_read_exactly, stream, parent)
    while True:
        json_bytes, _ = MESSAGE.unpack(read(MESSAGE.size))
        requests.put(json.loads(read(json_bytes)))


def _read_exactly(stream: BinaryIO, parent: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        # A process forked off the parent may keep the pipe open, so its end alone is no sign.
        while not select.select([stream], [], [], PARENT_CHECK_SECONDS)[0]:
            if os.getppid() != parent:
                os._exit(0)
        part = os.read(stream.fileno(), size - len(data))
        if not part:
            os._exit(0)
        data += part
    return data


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not end up between the frames
    requests: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    parent, decoder = int(sys.argv[1]), sys.argv[2]
    if decoder == "decord":
        import decord  # noqa: F401  (missing or broken: now, once, and not with every video)
    threading.Thread(
        target=_receive, args=(sys.stdin.buffer, parent, requests), daemon=True
    ).start()
    _send(replies, {"ready": True}, b"")
    last: list[ProbedVideo] = []
    while True:
        request = requests.get()
        try:
            reply, payload = _answer(request, PICKERS[decoder], last)
        except UnusableVideo as error:
            reply, payload = {"unusable": str(error)}, b""
        except Exception as error:  # the reason goes to the parent; this process serves on
            reply, payload = {"unusable": f"cannot be decoded: {error!r}"}, b""
        _send(replies, reply, payload)


def _send(stream: BinaryIO, reply: dict[str, Any], payload: bytes) -> None:
    header = json.dumps(reply).encode()
    stream.write(MESSAGE.pack(len(header), len(payload)) + header)
    stream.write(payload)
    stream.flush()


if __name__ == "__main__":
    main()
