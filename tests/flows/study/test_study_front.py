"""The picture and the page of all conditions."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from flows.study.evidence import Evidence
from flows.study.front import COLOURS, INK, spread
from flows.study.joint import write_joint
from flows.study.plan import load_study
from flows.study.wrongness import Wrongness
from tests.flows.study.study_points import result
from tests.flows.study.test_study_plan import STUDY
from tests.known import known

CONDITIONS = """
[front]
opd = "Ours"
grpo = "Theirs"
base = "base"
[arms.grpo]
title = "GRPO"
[[claims]]
name = "OPD above GRPO"
statement = "it ends above"
arms = ["opd"]
against = ["grpo"]
[[claims]]
name = "Faster"
statement = "it is there sooner"
arms = ["opd"]
against = ["grpo"]
rows = [{ measure = "cost_to_best", bound = 0.5 }]
[conditions.clean]
title = "clean annotations"
[conditions.loose]
[quick]
"""
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def conditions(tmp_path: Path) -> list[Evidence]:
    file = tmp_path / "mine.toml"
    file.write_text(STUDY.replace("[quick]\n", CONDITIONS, 1))
    ends = [{"opd": 0.5, "grpo": 0.5, "long": 0.9}, {"opd": 0.6, "grpo": 0.3, "long": 0.9}]
    return [
        Evidence(
            plan=plan,
            results=[result("base", s, (0, 0.4)) for s in range(3)]
            + [
                result(arm, s, (0, 0.4), (10, end + (s - 1) * 0.01 * len(arm)))
                for arm, end in of_one.items()
                for s in range(3)
            ],
            tuning=[],
            tuned=dict.fromkeys(of_one, 1e-3),
            missing={},
            wrongness=Wrongness(10, 0.0, longer, 0, ()),
        )
        for plan, of_one, longer in zip(
            load_study(file, tmp_path / "runs"), ends, (0.0, 1.25), strict=True
        )
    ]


@pytest.mark.parametrize(
    "wanted", [[0.5, 0.5, 0.5], [0.1, 0.9, 0.5], [0.52, 0.5, 0.3, 0.31, 0.33, 0.9], [1.0]]
)
def test_names_are_apart_in_order_and_near(wanted: list[float]) -> None:
    places = spread(wanted, 0.05)
    ordered = sorted(zip(wanted, places, strict=True))
    assert all(b[1] - a[1] >= 0.05 - 1e-9 for a, b in pairwise(ordered))
    assert all(abs(w - p) <= 0.05 * len(wanted) / 2 for w, p in zip(wanted, places, strict=True))
    apart = [w for w in wanted if all(abs(w - o) > 0.2 for o in wanted if o != w)]
    if len(set(wanted)) > 1:
        assert all(places[wanted.index(w)] == w for w in apart), "moved only where it must be"


def test_the_picture_has_few_arms_and_a_name_at_each_end(
    conditions: list[Evidence], tmp_path: Path
) -> None:
    _, picture = write_joint(conditions, tmp_path)
    tree = ET.parse(picture).getroot()
    texts = [text for text in tree.iter(f"{SVG}text") if text.text]
    words = [known(text.text) for text in texts]
    for word in ("Ours 0.50", "Theirs 0.50", "base 0.40", "Ours 0.60", "Theirs 0.30"):
        assert word in words
    assert words.count("clean annotations") == 1 == words.count("loose")
    assert not any("long" in word for word in words), "it is not in [front]"
    heights = {word: float(text.get("y", 0)) for word, text in zip(words, texts, strict=True)}
    assert abs(heights["Ours 0.50"] - heights["Theirs 0.50"]) > 11, "no name lies on another"


def test_a_condition_may_be_left_out_of_the_picture(
    conditions: list[Evidence], tmp_path: Path
) -> None:
    clean, loose = conditions
    study = loose.plan.study.model_copy(update={"in_picture": False})
    hidden = replace(loose, plan=replace(loose.plan, study=study))
    page, picture = write_joint([clean, hidden], tmp_path)
    words = [text.text for text in ET.parse(picture).iter(f"{SVG}text")]
    assert "clean annotations" in words and "loose" not in words
    text = page.read_text()
    assert "![mIoU against optimiser steps, clean annotations]" in text
    assert "[loose](" in text and "mIoU, loose |" in text, "its numbers are there"


def luminance(colour: str) -> float:
    channels = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("ground", ["#ffffff", "#0d1117"])
@pytest.mark.parametrize("colour", [*COLOURS, INK])
def test_every_colour_stands_out_on_light_and_on_dark(colour: str, ground: str) -> None:
    darker, lighter = sorted((luminance(colour), luminance(ground)))
    assert (lighter + 0.05) / (darker + 0.05) >= 3.4


def test_the_ground_is_transparent(conditions: list[Evidence], tmp_path: Path) -> None:
    _, picture = write_joint(conditions, tmp_path)
    assert not re.search(r"fill: #ffffff(?!; opacity: 0)", picture.read_text())


def test_the_page_has_every_arm_and_claim_of_both(
    conditions: list[Evidence], tmp_path: Path
) -> None:
    page, picture = write_joint(conditions, tmp_path)
    text = page.read_text()
    assert (page.name, picture.name) == ("mine.md", "mine.svg")
    assert "[clean annotations](mine-clean.md), [loose](mine-loose.md)" in text
    opd = known(re.search(r"^\| `opd` .*", text, re.MULTILINE))[0]
    assert "0.500 ± 0.075 | 25.0 ± 3.7 | +1.500 ± 0.075 | 0.600 ± 0.075 | 30.0 ± 3.7" in opd
    assert "| *annotations* | what is trained on | – | – | +0.000 | – | – | +1.250 |" in text
    above = known(re.search(r"^\| OPD above GRPO: it ends above .*", text, re.MULTILINE))[0]
    assert re.search(r"\*\*not settled\*\*: [+-]0.000 .*\*\*holds here\*\*: \+0.300", above)
    faster = known(re.search(r"^\| Faster: .*", text, re.MULTILINE))[0]
    assert "the other never rises" in faster.split(" | ")[2], "GRPO only fell"


def test_the_same_evidence_gives_the_same_page_and_picture(
    conditions: list[Evidence], tmp_path: Path
) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    first = [p.read_bytes() for p in write_joint(conditions, tmp_path / "a")]
    assert first == [p.read_bytes() for p in write_joint(conditions, tmp_path / "b")]


def test_an_arm_that_is_not_there_yet_is_left_out(
    conditions: list[Evidence], tmp_path: Path
) -> None:
    fewer = [r for r in conditions[0].results if r.arm != "grpo"]
    page, picture = write_joint([replace(conditions[0], results=fewer), conditions[1]], tmp_path)
    assert "Theirs 0.50" not in picture.read_text() and "Theirs 0.30" in picture.read_text()
    assert re.search(r"^\| OPD above GRPO: .* \| – \| ", page.read_text(), re.MULTILINE)
