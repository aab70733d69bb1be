"""Synthetic videos with known moments: the data on which the whole project is proven.

A run must be provable on any machine, without a download and in minutes. So this module draws
short videos of coloured shapes which come and go, encodes them as real H.264 files, and writes
annotations in the TimeLens-100K format. Everything downstream (decoding, sampling, processor,
vision tower) then does its real work on real files, only small ones.

One video: 64 x 64 pixels, 8 frames a second, 12 seconds (or as its scene says, `scenes.py`). Two
lanes, upper and lower; in each, one large shape after another appears and leaves on whole seconds.
Two to four of the shapes are asked for, each by a sentence which fits exactly one interval of that
video. Around them: shapes nobody
asks for (often of an asked colour, or of an asked form), small grey specks, noise, and cuts, at
which the background changes abruptly.

The same seed gives the same bytes (same versions of x264 and libavformat assumed).
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from opd_core.tinyworld.annotators import ANNOTATORS, Annotators, annotated
from opd_core.tinyworld.scenes import SCENES, SHORT, Scene
from opd_core.types import Span

SIZE = 64
"""Height and width of a video, pixels."""
FPS = 8
"""Frames a second."""
RECIPE = 1
"""Raised whenever the drawing changes, so that an old world is never mistaken for a new one."""

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (230, 30, 30),
    "green": (30, 200, 40),
    "blue": (40, 70, 250),
    "yellow": (240, 225, 30),
    "purple": (190, 50, 220),
    "cyan": (30, 220, 230),
}
FORMS = ("circle", "square", "triangle", "cross")
MOTIONS: dict[str, tuple[str, ...]] = {
    "still": ("a {} stays in the scene", "there is a {} in view"),
    "right": ("a {} moves to the right", "a {} moves across the scene"),
    "left": ("a {} moves to the left", "a {} moves across the scene"),
    "bounce": ("a {} bounces up and down", "the {} jumps in place"),
}
ANY_MOTION = ("a {} appears and leaves", "a {} can be seen", "the {} is visible")
LANES = (16.0, 48.0)
"""Middle rows of the two lanes, pixels."""

Progress = Callable[[int, int], None]
"""Called with (videos done, videos in all)."""


@dataclass(frozen=True, slots=True)
class Shape:
    """One large shape and the whole seconds during which it is in view."""

    colour: str
    form: str
    start: int
    """First second in view, counted from 0."""
    end: int
    """First second out of view again; `end - start` is 2 to 8."""
    lane: int
    """0 upper, 1 lower."""
    motion: str
    radius: float
    """Half the extent, pixels."""
    phase: float
    """Where in its lane a still shape stands or a bounce begins, in [0, 1)."""
    sentence: str | None
    """What is asked about it; None for a distractor."""

    @property
    def name(self) -> str:
        """Colour and form, e.g. "red circle": unique within a video."""
        return f"{self.colour} {self.form}"


@dataclass(frozen=True, slots=True)
class VideoPlan:
    """All that is drawn in one video."""

    seed: int
    scene: Scene
    shapes: tuple[Shape, ...]
    cuts: tuple[int, ...]
    """Frames at which the background changes; the first is always 0."""
    specks: int
    """How many grey specks drift about."""


@dataclass(frozen=True, slots=True)
class World:
    """The files and folders of a finished world."""

    root: Path
    train: Path
    """JSONL of the training split; its video paths are relative to `videos`."""
    eval: Path
    videos: Path
    truth: Path
    """The training split's truth: the same as `train` in a clean world. Nothing trains on it."""


def video_seed(seed: int, split: str, index: int) -> int:
    """Seed of one video, independent of how many others are made."""
    digest = hashlib.sha256(f"tinyworld/{RECIPE}/{seed}/{split}/{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big")


def plan_video(seed: int, scene: Scene = SHORT) -> VideoPlan:
    """Decides what happens in a video: as many asked shapes and distractors as there is room for,
    at least two, no two alike."""
    rng = np.random.default_rng(seed)
    asked = int(rng.integers(scene.asked[0], scene.asked[1] + 1))
    distractors = int(rng.integers(scene.distractors[0], scene.distractors[1] + 1))
    spans = _free_spans(rng, asked + distractors, scene)
    asked = min(asked, len(spans))
    names: list[tuple[str, str]] = []
    shapes = []
    for place, (lane, start, end) in enumerate(spans):
        colour, form = _new_name(rng, names)
        names.append((colour, form))
        motion = str(rng.choice(list(MOTIONS)))
        sentences = MOTIONS[motion] + ANY_MOTION
        sentence = sentences[int(rng.integers(len(sentences)))].format(f"{colour} {form}")
        shapes.append(
            Shape(
                colour=colour,
                form=form,
                start=start,
                end=end,
                lane=lane,
                motion=motion,
                radius=float(rng.uniform(11.0, 14.0)),
                phase=float(rng.uniform()),
                sentence=sentence if place < asked else None,
            )
        )
    cuts = rng.choice(
        np.arange(1, scene.seconds * FPS), size=int(rng.integers(0, 3)), replace=False
    )
    return VideoPlan(
        seed=seed,
        scene=scene,
        shapes=tuple(shapes),
        cuts=(0, *sorted(int(c) for c in cuts)),
        specks=int(rng.integers(0, 4)),
    )


def _free_spans(rng: np.random.Generator, wanted: int, scene: Scene) -> list[tuple[int, int, int]]:
    """(lane, start, end) of up to `wanted` intervals, at least two; a lane holds one at a time."""
    free = np.ones((len(LANES), scene.seconds + 1), dtype=bool)
    spans: list[tuple[int, int, int]] = []
    for _ in range(200):
        if len(spans) == wanted:
            break
        lane = int(rng.integers(len(LANES)))
        length = scene.draw_length(rng)
        start = int(rng.integers(0, scene.seconds - length + 1))
        if free[lane, start : start + length].all():
            free[lane, max(0, start - 1) : start + length + 1] = False
            spans.append((lane, start, start + length))
    return spans


def _new_name(rng: np.random.Generator, taken: list[tuple[str, str]]) -> tuple[str, str]:
    """A colour and form not yet in the video; half the time one of them repeats an earlier one."""
    while True:
        colour, form = str(rng.choice(list(COLOURS))), str(rng.choice(FORMS))
        if taken and rng.random() < 0.5:
            other = taken[int(rng.integers(len(taken)))]
            colour, form = (other[0], form) if rng.random() < 0.6 else (colour, other[1])
        if (colour, form) not in taken:
            return colour, form


def render(plan: VideoPlan) -> np.ndarray:
    """Draws a plan: uint8 RGB of shape [seconds * FPS, 64, 64, 3]."""
    rng = np.random.default_rng(plan.seed ^ 0x5EED)
    frames = np.empty((plan.scene.seconds * FPS, SIZE, SIZE, 3), dtype=np.uint8)
    for first, last in zip(plan.cuts, (*plan.cuts[1:], len(frames)), strict=True):
        frames[first:last] = rng.integers(15, 75, size=3, dtype=np.uint8)
    for _ in range(plan.specks):
        _draw_speck(frames, rng)
    for shape in plan.shapes:
        _draw_shape(frames, shape)
    noise = rng.integers(-4, 5, size=(8, SIZE, SIZE, 1), dtype=np.int16)
    rolls = rng.integers(0, SIZE, size=len(frames))
    noise = np.stack([np.roll(noise[t % 8], int(r), axis=1) for t, r in enumerate(rolls)])
    return np.clip(frames + noise, 0, 255).astype(np.uint8)


def _draw_speck(frames: np.ndarray, rng: np.random.Generator) -> None:
    """A grey square of 5 pixels which drifts in a straight line, in view for a few seconds."""
    first = int(rng.integers(0, len(frames) - 16))
    last = first + int(rng.integers(16, 64))
    grey = int(rng.integers(110, 200))
    position, speed = rng.uniform(0, SIZE - 5, size=2), rng.uniform(-0.6, 0.6, size=2)
    for t in range(first, min(last, len(frames))):
        y, x = np.clip(position + speed * (t - first), 0, SIZE - 5).astype(int)
        frames[t, y : y + 5, x : x + 5] = grey


def _draw_shape(frames: np.ndarray, shape: Shape) -> None:
    """Fills the pixels of a shape in every frame of its seconds; it is always wholly in view."""
    first, last = shape.start * FPS, shape.end * FPS
    progress = np.linspace(0.0, 1.0, last - first, dtype=np.float32)[:, None, None]
    low, high = shape.radius, SIZE - 1 - shape.radius
    across = {"right": progress, "left": 1 - progress}.get(shape.motion, shape.phase)
    x0 = low + (high - low) * across
    y0 = np.full_like(progress, LANES[shape.lane])
    if shape.motion == "bounce":
        turns = (shape.end - shape.start) / 2
        y0 = y0 + 2.5 * np.sin(2 * np.pi * (shape.phase + turns * progress))
    rows = np.arange(SIZE, dtype=np.float32)
    dy = rows[None, :, None] - y0
    dx = rows[None, None, :] - x0
    frames[first:last][_covers(shape.form, dx, dy, shape.radius)] = COLOURS[shape.colour]


def _covers(form: str, dx: np.ndarray, dy: np.ndarray, radius: float) -> np.ndarray:
    """Which pixels belong to a form, from their distance to its middle."""
    ax, ay = np.abs(dx), np.abs(dy)
    covered: np.ndarray
    if form == "circle":
        covered = ax**2 + ay**2 <= radius**2
    elif form == "square":
        covered = (ax <= 0.85 * radius) & (ay <= 0.85 * radius)
    elif form == "triangle":
        covered = (ay <= radius) & (ax <= (dy + radius) / 2)
    else:
        arm = 0.3 * radius
        covered = ((ax <= arm) & (ay <= radius)) | ((ay <= arm) & (ax <= radius))
    return covered


def encode_mp4(frames: np.ndarray, path: Path) -> None:
    """Writes uint8 [T, H, W, 3] as H.264; one thread, so that the bytes depend on nothing else."""
    with av.open(str(path), "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream(
            "libx264", rate=FPS, options={"preset": "superfast", "crf": "28", "threads": "1"}
        )
        stream.width, stream.height = frames.shape[2], frames.shape[1]
        stream.pix_fmt = "yuv420p"
        stream.time_base = Fraction(1, FPS)
        stream.codec_context.thread_count = 1
        for pts, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = pts, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def annotation(
    plan: VideoPlan, video_path: str, annotators: Annotators | None = None
) -> dict[str, Any]:
    """One line of the JSONL, as in TimeLens-100K; spans in seconds: the truth, or what
    `annotators` make of it."""
    rng = np.random.default_rng(plan.seed ^ 0xA770)
    events = []
    for shape in plan.shapes:
        if shape.sentence is None:
            continue
        span = Span(float(shape.start), float(shape.end))
        if annotators is not None:
            span = annotated(span, plan.scene, annotators, rng)
        events.append({"query": shape.sentence, "span": [[span.start, span.end]]})
    return {
        "source": "tinyworld",
        "video_path": video_path,
        "duration": float(plan.scene.seconds),
        "events": events,
    }


@dataclass(frozen=True, slots=True)
class _Manifest:
    seed: int
    train_videos: int
    eval_videos: int
    scene: str | None = None
    annotators: Annotators | None = None
    recipe: int = RECIPE

    def content(self) -> dict[str, object]:
        """As written: what is as it always was, short and clean, is not said."""
        return {key: value for key, value in asdict(self).items() if value is not None}


def make_world(
    root: Path | str,
    seed: int,
    train_videos: int,
    eval_videos: int,
    progress: Progress | None = None,
    annotations: str = "clean",
    scene: str = "short",
) -> World:
    """Makes `root/videos/{train,eval}/NNNNN.mp4`, `root/train.jsonl` and `root/eval.jsonl`.

    `scene` names the kind of its videos (`scenes.SCENES`). With `annotations` other than "clean"
    (`annotators.ANNOTATORS`) the training split is annotated as people do it, and
    `root/train_truth.jsonl` holds its truth. The eval split is always clean.

    A finished world is left as it is, a half-made one is completed: every file appears by rename,
    and `root/world.json`, the proof that all of it is there, appears last.

    Raises:
        ValueError: `root` holds a world (finished or not) made with other settings.
    """
    root = Path(root)
    annotators = ANNOTATORS[annotations]
    train = root / "train.jsonl"
    truth = root / "train_truth.jsonl" if annotators else train
    world = World(root, train, root / "eval.jsonl", root / "videos", truth)
    wanted = _Manifest(
        seed, train_videos, eval_videos, scene if scene != "short" else None, annotators
    ).content()
    done, begun = root / "world.json", root / "world.begun.json"
    for manifest in (done, begun):
        if manifest.exists() and (made_with := json.loads(manifest.read_text())) != wanted:
            raise ValueError(
                f"{root} holds a world made with {made_with}, wanted {wanted}: "
                "remove the folder or choose another"
            )
    total = train_videos + eval_videos
    if done.exists():
        if progress is not None:
            progress(total, total)
        return world
    root.mkdir(parents=True, exist_ok=True)
    _publish_text(begun, json.dumps(wanted) + "\n")
    count = 0
    for split, videos in (("train", train_videos), ("eval", eval_videos)):
        (world.videos / split).mkdir(parents=True, exist_ok=True)
        plans = []
        for index in range(videos):
            plan = plan_video(video_seed(seed, split, index), SCENES[scene])
            path = world.videos / split / f"{index:05d}.mp4"
            if not path.exists():
                aside = path.with_suffix(".mp4.part")
                encode_mp4(render(plan), aside)
                aside.replace(path)
            plans.append((plan, f"{split}/{path.name}"))
            count += 1
            if progress is not None:
                progress(count, total)
        truth_of_split = world.truth if split == "train" else world.eval
        _publish_rows(truth_of_split, [annotation(*plan) for plan in plans])
        if split == "train" and annotators:
            _publish_rows(world.train, [annotation(*plan, annotators) for plan in plans])
    begun.replace(done)
    return world


def _publish_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    _publish_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def _publish_text(path: Path, text: str) -> None:
    aside = path.with_name(path.name + ".part")
    aside.write_text(text)
    aside.replace(path)
