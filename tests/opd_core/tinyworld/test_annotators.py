"""Loose annotations: how far they are from the truth, and that nothing else of a world changes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from opd_core.spans.grounding import temporal_iou
from opd_core.tinyworld.annotators import LOOSE, annotated
from opd_core.tinyworld.scenes import SCENES, SHORT
from opd_core.tinyworld.world import World, annotation, make_world, plan_video, video_seed
from opd_core.types import Span


def spans(path: Path) -> list[Span]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [Span(*event["span"][0]) for row in rows for event in row["events"]]


@pytest.fixture(scope="module")
def loose(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("loose"), 7, 6, 3, annotations="loose")


def test_only_the_training_spans_are_loose(loose: World, tmp_path: Path) -> None:
    clean = make_world(tmp_path / "clean", 7, 6, 3)
    assert clean.truth == clean.train
    assert loose.truth.read_bytes() == clean.train.read_bytes()
    assert loose.eval.read_bytes() == clean.eval.read_bytes()
    for video in clean.videos.rglob("*.mp4"):
        assert (loose.videos / video.relative_to(clean.videos)).read_bytes() == video.read_bytes()
    written, true = spans(loose.train), spans(clean.train)
    assert len(written) == len(true)
    assert sum(a != b for a, b in zip(written, true, strict=True)) > len(true) / 2


def test_the_manifest_says_how_loose(loose: World, tmp_path: Path) -> None:
    manifest = json.loads((loose.root / "world.json").read_text())
    assert manifest["annotators"] == {"wrong_share": 0.21, "widening": 4}
    make_world(tmp_path / "clean", 7, 1, 1)
    assert "annotators" not in json.loads((tmp_path / "clean" / "world.json").read_text())
    with pytest.raises(ValueError, match="remove the folder"):
        make_world(loose.root, 7, 6, 3)


def test_a_video_is_annotated_alike_in_any_world(loose: World, tmp_path: Path) -> None:
    more = make_world(tmp_path, 7, 7, 1, annotations="loose")
    assert more.train.read_text().startswith(loose.train.read_text())


def test_the_rates_are_those_of_their_source() -> None:
    """21 % anywhere; of the others' ends, uniform from 0 to 4 seconds outside."""
    rng = np.random.default_rng(0)
    middle = [annotated(Span(20.0, 24.0), SCENES["long"], LOOSE, rng) for _ in range(20_000)]
    around = [s for s in middle if s.start <= 20.0 and s.end >= 24.0]
    assert len(around) / len(middle) == pytest.approx(0.79, abs=0.02)
    for moved in ([20.0 - s.start for s in around], [s.end - 24.0 for s in around]):
        near = [m for m in moved if m <= 4.0]
        for seconds in range(5):
            assert near.count(float(seconds)) / len(near) == pytest.approx(0.2, abs=0.02)

    true: list[Span] = []
    written: list[Span] = []
    for index in range(1000):
        plan = plan_video(video_seed(0, "train", index))
        for rows, annotators in ((true, None), (written, LOOSE)):
            rows += [Span(*e["span"][0]) for e in annotation(plan, "", annotators)["events"]]
    overlap = np.array([temporal_iou(a, b) for a, b in zip(written, true, strict=True)])
    # Their source: 20.6 % + 34.9 %; a wrong moment overlaps by more than half now and then.
    assert (overlap <= 0.5).mean() == pytest.approx(0.53, abs=0.02)
    assert all(0.0 <= s.start < s.end <= SHORT.seconds for s in written)
