"""TRPV as a filter of bad annotations, on made-up sentences and on a world's files."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.study.wrongness import annotated
from opd_core.tinyworld.world import make_world
from opd_core.tinyworld.wrongness import Judged, filtering, filtering_at


def test_precision_and_recall_of_what_is_dropped() -> None:
    judged = [Judged(0.05, 0.0), Judged(0.25, 0.9), Judged(0.45, 0.4), Judged(0.95, 0.3)]
    by_threshold = {f.min_teacher_iou: f for f in filtering(judged)}
    assert list(by_threshold) == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    one, two, three = (by_threshold[m] for m in (0.1, 0.3, 0.5))
    numbers = [n for f in (one, two, three) for n in (f.dropped, f.precision, f.recall)]
    assert numbers == pytest.approx([0.25, 1, 1 / 3, 0.5, 0.5, 1 / 3, 0.75, 2 / 3, 2 / 3])


def test_what_drops_nothing_has_no_precision_and_what_has_nothing_bad_no_table() -> None:
    first = filtering([Judged(0.1, 0.2), Judged(1.0, 0.5)])[0]
    assert (first.min_teacher_iou, first.dropped) == (0.1, 0.0), "0.1 is reliable enough for 0.1"
    assert (first.precision, first.recall) == (None, 0.0)
    assert filtering([Judged(0.1, 0.5), Judged(0.0, 1.0)]) == () == filtering([])


def test_one_threshold_alone_is_the_row_of_the_table() -> None:
    judged = [Judged(0.05, 0.0), Judged(0.25, 0.9), Judged(0.45, 0.4)]
    assert filtering_at(0.3, judged) == filtering(judged)[2]
    assert filtering_at(0.3, [Judged(0.1, 1.0)]).recall is None, "none is bad"


@pytest.mark.parametrize("annotations", ["clean", "loose"])
def test_each_sentence_has_its_own_truth(tmp_path: Path, annotations: str) -> None:
    world = make_world(tmp_path, 3, 8, 1, annotations=annotations)
    lines = world.train.read_text().splitlines(keepends=True)
    (tmp_path / "train-without-tune.jsonl").write_text("".join(lines[:6]))
    sentences = annotated(tmp_path)
    assert len(sentences) == sum(line.count('"query"') for line in lines[:6])
    ious = [one.iou for one in sentences.values()]
    if annotations == "clean":
        assert set(ious) == {1.0}
        assert {one.seconds_longer for one in sentences.values()} == {0.0}
    else:
        assert min(ious) < 0.5 < max(ious) and sum(i < 1 for i in ious) > len(ious) / 2
