"""What the project says of itself in several places: its version, and what `make` can do."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.tiny_config import ROOT

VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_the_newest_version_of_the_changelog_is_the_projects() -> None:
    versions = re.findall(r"^## \[([^\]]+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == VERSION
    assert len(versions) == len(set(versions)) > 1


def test_the_command_tells_the_version() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", "--version"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split()[:2] == ["videoopd", VERSION]


TARGETS = set(re.findall(r"^\.PHONY: (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE))
FLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.mark.parametrize("file", [*FLOWS, ROOT / ".pre-commit-config.yaml"], ids=lambda p: p.stem)
def test_what_runs_by_itself_are_targets_of_the_makefile(file: Path) -> None:
    called = re.findall(r"^\s*(?:- run|entry): make (.+)$", file.read_text(), re.MULTILINE)
    assert called and set(called) <= TARGETS


def test_ci_lints_tests_and_builds_the_docs() -> None:
    called = {
        target for file in FLOWS for target in re.findall(r"- run: make (\S+)", file.read_text())
    }
    assert called >= {"lint", "quick", "test", "test-all", "docs"}
