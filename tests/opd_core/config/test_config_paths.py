"""Whose folder a path of an override begins in; and the config that `init` writes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from opd_core.config.load import Config, load_config
from opd_core.config.paths import from_folder
from opd_core.config.template import config_template, section_of
from opd_core.config.toml_text import toml_value
from opd_core.types import VideoOPDError
from tests.opd_core.config.several_teachers import SEVERAL
from tests.tiny_config import ROOT

PATHS = [
    "run.path", "data.train", "data.eval", "data.videos", "student.path", "teacher.path",
    "teacher.cache", "frames.path", "score.cache", "tracking.folder",
]  # fmt: skip


def value_at(config: Any, key: str) -> Any:
    for name in key.split("."):
        config = getattr(config, name)
    return config


@pytest.mark.parametrize("key", PATHS)
@pytest.mark.parametrize(
    ("written", "found"),
    [
        ("a/b/c", "{shell}/a/b/c"),
        ("./a", "{shell}/a"),
        ("../a", "{shell.parent}/a"),
        ("'a b'", "{shell}/a b"),
        ('"a"', "{shell}/a"),
        ("/x/y", "/x/y"),
        ("~/y", "{home}/y"),
        ("2026-11-27", "{shell}/2026-11-27"),
        ("17", "{shell}/17"),
        ("true", "{shell}/true"),
    ],
)
def test_a_path_begins_in_the_shells_folder(
    key: str, written: str, found: str, tmp_path: Path
) -> None:
    shell = tmp_path / "shell"
    overrides = from_folder([f"{key} = {written}"], shell)
    config = load_config(ROOT / "configs" / "tiny.toml", overrides)
    assert value_at(config, key) == Path(found.format(shell=shell, home=Path.home()))


@pytest.mark.parametrize("key", PATHS)
@pytest.mark.parametrize("typed", [True, False], ids=["in a shell", "in a config"])
def test_an_address_is_no_path(key: str, typed: bool, tmp_path: Path) -> None:
    overrides = [f"{key}=s3://bucket/a"]
    with pytest.raises(VideoOPDError, match="s3://bucket/a is an address.*storage.tables"):
        whole = from_folder(overrides, tmp_path) if typed else overrides
        load_config(ROOT / "configs" / "tiny.toml", whole)
    assert not list(tmp_path.iterdir())


def test_no_path_key_is_forgotten() -> None:
    """By type, so that a key that is added is covered; the list above only has to name it."""
    found = [
        f"{section}.{key}"
        for section, field in Config.model_fields.items()
        for key, kind in section_of(field).model_fields.items()
        if "Path" in str(kind.annotation)
    ]
    of_several = ["teachers.path", "teachers.cache"]
    assert sorted(found) == sorted([*PATHS, *of_several])


def test_a_path_of_one_of_several_teachers_begins_in_the_shells_folder(tmp_path: Path) -> None:
    file, shell = tmp_path / "several.toml", tmp_path / "shell"
    file.write_text(SEVERAL)
    overrides = from_folder(["teachers.large.cache=a/b", "teachers.small.dtype=float32"], shell)
    large, small = load_config(file, overrides).teachers
    assert large.cache == shell / "a" / "b"
    assert (large.dtype, small.dtype) == ("bfloat16", "float32")


@pytest.mark.parametrize(
    "override",
    ["focus.top_k=3", "update.objective={grpo=1.0}", "machine.device=cpu", "nothing.path=a",
     "update.lora={rank=8}", "run.seed = 4"],
)  # fmt: skip
def test_what_is_no_path_stays_as_it_is(override: str, tmp_path: Path) -> None:
    assert from_folder([override], tmp_path) == (override,)


@pytest.mark.parametrize("override", ["run.path=", "teacher.cache= ", 'run.path=""'])
def test_an_empty_path_is_a_sentence(override: str, tmp_path: Path) -> None:
    with pytest.raises(VideoOPDError, match="names no path; give one"):
        from_folder([override], tmp_path)


@pytest.mark.parametrize("override", ["run", "run=3", ".path=a", "run.=a", "=a"])
def test_what_is_no_override_is_a_sentence(override: str, tmp_path: Path) -> None:
    with pytest.raises(VideoOPDError, match=r"is not section\.key=value"):
        from_folder([override], tmp_path)


def test_without_a_shell_a_path_begins_at_the_config() -> None:
    config = load_config(ROOT / "configs" / "tiny.toml", ["run.path=x"])
    assert config.run.path == ROOT / "configs" / "x"


def test_the_written_config_loads_once_its_paths_are_there(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(config_template())
    config = load_config(file)
    assert config.run.path == tmp_path / "runs" / "first"
    assert config.data.videos == tmp_path / "data" / "videos"


ABSENT = "# Absent, unless you write this section:"


def test_every_key_of_it_is_the_default(tmp_path: Path) -> None:
    """Without the #, it is the same config: what stands there is what would hold anyway."""
    file, bare = tmp_path / "mine.toml", tmp_path / "bare.toml"
    file.write_text(config_template())
    lines = [
        re.sub(r"^#(?=\w+ = \S)", "", line)
        for line in (*config_template().splitlines(), "")
        if "(not set)" not in line
    ]
    while ABSENT in lines:
        begin = lines.index(ABSENT)
        del lines[begin : [*lines, ""].index("", begin)]
    bare.write_text("\n".join(lines))
    assert load_config(bare) == load_config(file)


def test_the_settings_of_a_part_are_its_defaults(tmp_path: Path) -> None:
    """They stand in a new config as what would hold anyway."""
    file, written = tmp_path / "mine.toml", tmp_path / "written.toml"
    text = config_template()
    file.write_text(text)
    before, section = text.split("#[update.unlikely_penalty]\n")
    inside, after = section.split("\n\n", 1)
    inside = re.sub(r"^#(?=\w+ = )", "", inside, flags=re.MULTILINE)
    written.write_text(f"{before}[update.unlikely_penalty]\n{inside}\n\n{after}")
    given = load_config(written).update
    assert given.model_extra and given.of("unlikely_penalty") == (
        load_config(file).update.of("unlikely_penalty")
    )


def test_it_names_every_key_with_its_meaning() -> None:
    text = config_template()
    for section, field in Config.model_fields.items():
        part = text[text.index(f"[{section}]") :]
        for key in section_of(field).model_fields:
            assert re.search(rf"^#?(\[{section}\.{key}\]|{key} = )", part, re.MULTILINE), key
    assert (
        "Nats a token that the update has moved away from the policy it began with; beyond it the"
        in text
    )
    assert "hf, vllm or vllm_server." in text


def test_values_are_written_as_toml_reads_them() -> None:
    import tomllib

    value = {"a": [1, 2.5], "b c": 'x "y" \\', "d": {"e": True}, "f": ("g",)}
    assert tomllib.loads(f"v = {toml_value(value)}")["v"] == value | {"f": ["g"]}
