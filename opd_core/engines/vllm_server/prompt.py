"""Our prompt as a server takes it, and what its processor has made of it.

It is sent as a chat: the frames that we have decoded and resized, each a PNG, which loses nothing,
with their indices and rate, so that the server's processor neither samples nor resizes them; and
the question. What comes back is the evidence: the token ids, the grid and the very patches that its
vision tower will be given.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from opd_core.engines.base import SeenPrompt, pixel_sample
from opd_core.engines.vllm_server.connection import Connection, PromptRefusedError
from opd_core.prompts.encoder import EncodedPrompt, PromptEncoder
from opd_core.types import VideoOPDError
from opd_core.video.clip import VideoClip

VISION_END, MESSAGE_END = "<|vision_end|>", "<|im_end|>"


@dataclass(frozen=True, slots=True)
class Rendered:
    """A prompt as the server's processor has made it."""

    token_ids: list[int]
    features: dict[str, Any]
    """Its pixels and where they stand, as the server takes them."""
    seen: SeenPrompt


def rendered(
    connection: Connection, model: str, prompt: EncodedPrompt, prompts: PromptEncoder
) -> Rendered:
    """Let the server make the prompt. Raises `PromptRefusedError` where it will not."""
    assert prompt.clip is not None
    reply = connection.render(_chat(model, prompt.text, prompt.clip))
    token_ids, family = list(reply["token_ids"]), prompts.architecture
    (packed,) = reply["features"]["kwargs_data"]["video"]
    (place,) = reply["features"]["mm_placeholders"]["video"]
    video = Packed.of(packed)
    patches = video.array(family.pixels)
    if not np.issubdtype(patches.dtype, np.floating):
        raise VideoOPDError(
            f"the vLLM server at {connection.address} normalises pixels on its device, by the "
            "image processor's mean and std; start it with --no-mm-device-do-normalize"
        )
    t, h, w = (int(n) for n in video.array(family.grid).reshape(-1))
    seconds = (
        video.array(family.second_per_grid) if family.second_per_grid in video.fields else None
    )
    # Who is who for its prefix cache: pixels, and all that is said of their times.
    identity = f"{prompt.clip.pixel_hash} {prompt.clip.metadata}"
    pads = prompts.video_token_id
    seen = SeenPrompt(
        tuple(token_ids),
        (t, h, w),
        pixel_sample(_tensor(patches)),
        second_per_grid=None if seconds is None else float(seconds.reshape(-1)[0]),
        tells_position=False,
    )
    runs = _runs(token_ids, place["offset"], place["length"], pads)
    if sum(count for _, count in runs) == place["length"]:
        features = _features("video", [packed], runs, identity)
    elif len(runs) == t and family.grids == "one a frame pair":
        frames = video.frame_pairs(family.pixels, (t, h, w), family.grid)
        features = _features("image", frames, runs, identity)
    else:
        raise PromptRefusedError(f"its video of {t} frame pairs stands in {len(runs)} places")
    return Rendered(token_ids, features, seen)


def _runs(token_ids: Sequence[int], offset: int, length: int, pad: int) -> list[tuple[int, int]]:
    """(first, number) of tokens one after the other that stand for pixels. Text may be between
    them: the time of each frame pair."""
    runs: list[tuple[int, int]] = []
    for position in range(offset, offset + length):
        if token_ids[position] != pad:
            continue
        if runs and sum(runs[-1]) == position:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((position, 1))
    return runs


def _features(
    kind: str, packed: list[str], runs: list[tuple[int, int]], identity: str
) -> dict[str, Any]:
    return {
        "mm_hashes": {
            kind: [
                hashlib.sha256(f"{identity} {part} of {len(packed)}".encode()).hexdigest()
                for part in range(len(packed))
            ]
        },
        "mm_placeholders": {kind: [{"offset": at, "length": count} for at, count in runs]},
        "kwargs_data": {kind: packed},
    }


@dataclass(frozen=True, slots=True)
class Packed:
    """What vLLM's processor gives of one video, in vLLM's own packing: msgpack, in which an array
    is its dtype, shape and bytes."""

    fields: dict[str, Any]

    @classmethod
    def of(cls, text: str) -> Packed:
        """Raises `VideoOPDError` where what unpacks it is not installed."""
        try:
            import msgspec
        except ImportError:
            raise VideoOPDError(
                "to look at what a vLLM server makes of a video takes msgspec, which is not "
                'installed; install it with `pip install "videoopd[server]"`'
            ) from None
        return cls(msgspec.msgpack.decode(base64.b64decode(text)))

    def array(self, name: str) -> np.ndarray:
        """One of the fields; a number is an array of none axes."""
        data = self.fields[name]["data"]
        if isinstance(data, int | float):
            return np.asarray(data)
        dtype, shape, packed = data
        if dtype == "bfloat16":  # which numpy has not: the upper half of a float32
            upper = np.frombuffer(packed.data, np.uint16).astype(np.uint32) << 16
            return upper.view(np.float32).reshape(shape)
        return np.frombuffer(packed.data, dtype).reshape(shape)

    def frame_pairs(self, pixels: str, grid_thw: tuple[int, int, int], grid: str) -> list[str]:
        """Each frame pair of the video, packed as an image.

        Where text stands between frames, vLLM 0.32 forgets on the way in which tokens of a video
        are pixels, and fails. To the model it is the same: its vision tower sees a frame pair by
        itself, and each has a grid of its own among the positions. That it is so is compared.
        """
        import msgspec

        t, h, w = grid_thw
        dtype, (rows, width), packed = self.fields[pixels]["data"]
        code, content = packed.code, bytes(packed.data)
        size = len(content) // t
        one = np.asarray([1, h, w], np.int64).tobytes()
        ext = msgspec.msgpack.Ext
        return [
            base64.b64encode(
                msgspec.msgpack.encode(
                    {
                        "pixel_values": {
                            "data": [dtype, [rows // t, width],
                                     ext(code, content[part * size : (part + 1) * size])],
                            "field": self.fields[pixels]["field"],
                        },
                        "image_grid_thw": {
                            "data": ["int64", [3], ext(code, one)],
                            "field": self.fields[grid]["field"],
                        },
                    }
                )
            ).decode()
            for part in range(t)
        ]  # fmt: skip


def _chat(model: str, text: str, clip: VideoClip) -> dict[str, Any]:
    """The chat whose template gives `text`: all that stands behind the video is the question."""
    question = text.split(VISION_END, 1)[1].split(MESSAGE_END, 1)[0]
    metadata = clip.metadata
    frames = {
        "num_frames": -1,
        **{key: metadata[key] for key in ("fps", "frames_indices", "total_num_frames", "duration")},
        "do_sample_frames": False,
    }
    url = f"data:video/jpeg;base64,{_frames(clip.frames)}"
    content = [
        {"type": "video_url", "video_url": {"url": url}},
        {"type": "text", "text": question},
    ]
    return {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "media_io_kwargs": {"video": frames},
        "mm_processor_kwargs": {"do_resize": False},
        "max_completion_tokens": 1,
    }


def _frames(frames_FHWC: np.ndarray) -> str:
    """Each as PNG in base64, with commas: what vLLM calls a video/jpeg and opens as any picture."""
    from PIL import Image

    texts = []
    for frame in frames_FHWC:
        file = io.BytesIO()
        Image.fromarray(frame).save(file, "PNG", compress_level=1)
        texts.append(base64.b64encode(file.getvalue()).decode())
    return ",".join(texts)


def _tensor(array: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(array.astype(np.float32))
