"""Names in a config and what they stand for, with packages of somebody else's installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from opd_core.annotations.formats.readers import FORMATS
from opd_core.config.load import load_config
from opd_core.config.section import ChoosingSection, Section
from opd_core.config.sections import UpdateSection
from opd_core.config.template import config_template
from opd_core.engines import choice
from opd_core.extensions import (
    CURRICULA,
    ENGINES,
    OBJECTIVES,
    TEMPLATES,
    TRAINER,
    Engine,
    Objective,
    is_the_trainer,
)
from opd_core.model.agreement import served_dtype
from opd_core.registry import Registry
from opd_core.spans.protocols.known import PROTOCOLS
from opd_core.types import VideoOPDError
from tests.foreign_package import install

ROOT = Path(__file__).resolve().parents[2]
OWN = {"grpo": "opd_core.update.terms.grpo:OBJECTIVE"}
MINE = """
from opd_core.config.section import Section
from opd_core.extensions import Objective
MINE = Objective(about="mine", loss=lambda inputs, chunk, weights_C: chunk.chosen_C)
NO_OBJECTIVE = 3
OF_A_DICT = Objective(about="", loss=MINE.loss, settings=dict)
class Taken(Section):
    weight: float = 1.0
WITH_SETTINGS = Objective(about="", loss=MINE.loss, settings=Taken)
"""


def registry(group: str = "videoopd.objectives") -> Registry[Objective]:
    return Registry(group, Objective, OWN)


def test_an_own_part_is_loaded_when_it_is_asked_for() -> None:
    known = registry("videoopd.nobody")
    assert list(known) == ["grpo"] and known.problem("grpo") is None
    assert known["grpo"] is OBJECTIVES["grpo"]


@pytest.mark.parametrize("name", ["gpro", 3, ["grpo"], {}, "", None, True, "é"])
def test_an_unknown_name_is_one_sentence_with_the_nearest(name: object) -> None:
    problem = registry("videoopd.nobody").problem(name)
    assert problem is not None and repr(name) in problem and "grpo" in problem
    assert ("did you mean 'grpo'?" in problem) == (name in ("gpro", ["grpo"]))


def test_a_part_of_another_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = {"videoopd.objectives": {"mine": "other_one:MINE"}}
    monkeypatch.syspath_prepend(install(tmp_path, "other_one", MINE, points))
    known = registry()
    assert list(known) == ["grpo", "mine"]
    assert known["mine"].about == "mine" and not known["mine"].needs_teacher
    assert known.problem("mime") == "knows no 'mime'; did you mean 'mine'?"
    assert list(registry("videoopd.curricula")) == ["grpo"], "of another group"


@pytest.mark.parametrize(("name", "value", "word"), [
    ("mine", "other_two:ABSENT", "cannot be loaded"),
    ("mine", "not_there:MINE", "cannot be loaded"),
    ("mine", "other_two:NO_OBJECTIVE", "is a int; make it a opd_core.extensions.Objective"),
    ("grpo", "other_two:MINE", "and by videoopd itself"),
])  # fmt: skip
def test_what_cannot_be_used_names_its_entry_point(
    name: str, value: str, word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = {"videoopd.objectives": {name: value}}
    monkeypatch.syspath_prepend(install(tmp_path, "other_two", MINE, points))
    with pytest.raises(VideoOPDError, match=f"{name} = {value} .*{word}"):
        registry()[name]


def test_a_name_that_two_packages_give_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("other_three", "other_four"):
        points = {"videoopd.objectives": {"mine": f"{module}:MINE"}}
        monkeypatch.syspath_prepend(install(tmp_path / module, module, MINE, points))
    known = registry()
    assert list(known) == ["grpo", "mine"] and known["grpo"], "what is clear can be used"
    with pytest.raises(VideoOPDError, match="mine = other_four:MINE and by mine = other_three"):
        known["mine"]


@pytest.mark.parametrize("parts", [OBJECTIVES, CURRICULA, TEMPLATES, ENGINES, FORMATS, PROTOCOLS])
def test_every_part_says_what_it_is(parts: Registry[Any]) -> None:
    assert list(parts) and all(parts[name].about for name in parts)


@pytest.mark.parametrize("parts", [OBJECTIVES, CURRICULA, TEMPLATES, ENGINES])
def test_a_new_config_explains_them_all(parts: Registry[Any]) -> None:
    lines = " ".join(config_template().replace("#", "").split())
    assert [n for n in parts if f"{n}: {parts[n].about}" not in lines] == []


def test_what_each_objective_needs() -> None:
    assert [n for n in OBJECTIVES if not OBJECTIVES[n].needs_teacher] == ["grpo", "sft"]
    exact = ["exact_reverse_kl", "exact_forward_kl", "jsd", "student_topk_reverse_kl"]
    assert [n for n in OBJECTIVES if OBJECTIVES[n].needs_distribution] == exact
    sampled = ["policy_gradient", "unlikely_penalty", "grpo"]
    assert [n for n in OBJECTIVES if OBJECTIVES[n].on_policy_only] == sampled
    levels = {n: OBJECTIVES[n].importance_levels for n in OBJECTIVES}
    assert levels == {
        **dict.fromkeys(sampled, ("token", "sequence")),
        **dict.fromkeys(exact, ("prefix", "sequence")),
        "sft": (),
    }


def test_what_each_engine_can_and_needs() -> None:
    assert [n for n in ENGINES if ENGINES[n].scorer is None] == []
    assert [n for n in ENGINES if is_the_trainer(n)] == [TRAINER] == ["hf"]
    assert not is_the_trainer("truth"), "rows of no engine"
    assert [n for n in ENGINES if ENGINES[n].needs] == ["vllm"]
    config = load_config(ROOT / "configs/tiny.toml", ["vllm.dtype=float32"])
    served = [served_dtype(config, n, "bfloat16") for n in (*ENGINES, "truth")]
    assert served == ["bfloat16", "float32", "bfloat16", "bfloat16"]
    assert [n for n in ENGINES if ENGINES[n].identity is not None] == ["vllm_server"]


def test_an_engine_that_needs_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "ENGINES", {"x": replace(ENGINES["hf"], needs=("no-such-1", "b"))})
    with pytest.raises(VideoOPDError, match=r"'x', which is not .*\(no-such-1, or b\)"):
        choice.installed_engine("x")


def test_an_engine_by_another_name_than_the_configs(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = nullcontext(SimpleNamespace(name="hf"))
    monkeypatch.setattr(choice, "ENGINES", {"x": Engine(about="", opened=lambda *_: opened)})
    config = load_config(ROOT / "configs/tiny.toml")
    with (
        pytest.raises(VideoOPDError, match="the engine 'x' opens one that calls itself 'hf'"),
        choice.opened_engine(config, "x", config.student.path, "float32", cast(Any, None)),
    ):
        pass


def test_settings_that_are_no_section_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = {"videoopd.objectives": {"mine": "other_five:OF_A_DICT"}}
    monkeypatch.syspath_prepend(install(tmp_path, "other_five", MINE, points))

    class Choosing(ChoosingSection):
        parts = registry()

        def chosen(self) -> list[str]:
            return []

    with pytest.raises(VideoOPDError, match="'mine' .*inherits from .*config.section.Section"):
        Choosing.model_validate({"mine": {}})


def test_settings_under_the_name_of_a_key_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = {"videoopd.objectives": {
        "mine": "other_six:WITH_SETTINGS", "plain": "other_six:MINE",
    }}  # fmt: skip
    monkeypatch.syspath_prepend(install(tmp_path, "other_six", MINE, points))

    class Choosing(ChoosingSection):
        parts = registry()
        mine: Section = Section()
        plain: Section = Section()
        use: str = "plain"

        def chosen(self) -> list[str]:
            return [self.use]

    assert Choosing.model_validate({"mine": {}}).of("plain") is None, "it takes none"
    with pytest.raises(VideoOPDError, match="'mine' of videoopd.objectives takes settings, and"):
        Choosing.model_validate({"use": "mine"})


def test_a_part_without_settings_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = {"videoopd.objectives": {"mine": "other_six:MINE"}}
    monkeypatch.syspath_prepend(install(tmp_path, "other_six", MINE, points))
    monkeypatch.setattr(UpdateSection, "parts", registry())
    with pytest.raises(VideoOPDError, match=r"update\.mine takes no settings; remove it"):
        load_config(ROOT / "configs/tiny.toml", ["update.objective=mine", "update.mine.x=1"])


def test_a_module_that_ends_the_program_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = {"videoopd.objectives": {"mine": "other_seven:MINE"}}
    source = "raise SystemExit(3)\n"
    monkeypatch.syspath_prepend(install(tmp_path, "other_seven", source, points))
    with pytest.raises(VideoOPDError, match=r"cannot be loaded: SystemExit: 3; repair"):
        registry()["mine"]


def test_settings_of_our_own_are_found_like_those_of_others() -> None:
    config = load_config(ROOT / "configs/tiny.toml", ["update.grpo.clip_low=0.1"])
    assert config.update.of("grpo") is config.update.grpo and config.of("vllm") is config.vllm
    assert config.update.of("sft") is None and config.of("hf") is None


def test_settings_of_a_new_part_of_our_own_are_in_a_config_only_where_they_are_given() -> None:
    tiny = ROOT / "configs/tiny.toml"
    plain = load_config(tiny, ["update.objective=unlikely_penalty"])
    assert "unlikely_penalty" not in plain.what_counts()["update"]
    assert plain.update.of("unlikely_penalty").advantage == -1.0
    given = load_config(
        tiny, ["update.objective=unlikely_penalty", "update.unlikely_penalty.below=0.05"]
    )
    assert given.update.of("unlikely_penalty").below == 0.05 and given.hash != plain.hash
    with pytest.raises(VideoOPDError, match=r"unlikely_penalty\.advantage = 1"):
        load_config(tiny, ["update.unlikely_penalty.advantage=1"])
    with pytest.raises(VideoOPDError, match="did you mean 'unlikely_penalty'"):
        load_config(tiny, ["update.unlikely_penatly.below=0.05"])
    with pytest.raises(VideoOPDError, match="did you mean 'below'"):
        load_config(tiny, ["update.unlikely_penalty.belov=0.05"])


def test_the_how_tos_name_them_all() -> None:
    pages = ("objectives", "curricula", "evaluate")
    text = "".join((ROOT / "docs" / "how-to" / f"{page}.md").read_text() for page in pages)
    assert [n for n in (*OBJECTIVES, *CURRICULA, *PROTOCOLS) if f"| `{n}` |" not in text] == []


def test_configs_are_read_without_torch() -> None:
    code = (
        "import json, sys\n"
        "from opd_core.config.load import load_config\n"
        "from opd_core.extensions import OBJECTIVES\n"
        "[OBJECTIVES[name].about for name in OBJECTIVES]\n"
        "print(json.dumps([load_config('configs/tiny.toml').hash, 'torch' in sys.modules]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout) == [load_config(ROOT / "configs/tiny.toml").hash, False]
