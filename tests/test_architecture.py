"""The import directions and other promises of the design, checked on the code itself."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from opd_core.config.load import load_config

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("flows", "opd_core", "storage")
HEAVY = {"torch", "torchvision", "transformers", "vllm", "decord", "av", "lance", "peft"}
STORAGE_MAY = {
    "opd_core.types",
    "opd_core.adapter_folder",
    "opd_core.hub.name",
    "storage",
    "lance",
    "duckdb",
    "pyarrow",
    "polars",
    "numpy",
    "safetensors",
}


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """(dotted name, line) of every import, those inside functions and for type checkers too.

    `from a.b import c` gives a.b and a.b.c, because c may be a module.
    """
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import; write it in full"
            assert node.module is not None
            yield node.module, node.lineno
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node.lineno
    yield from imported_by_string(path)


def imported_by_string(path: Path) -> Iterator[tuple[str, int]]:
    """(dotted name, line) of every `import_module("a.b")`."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Call) and _called(node) in ("import_module", "__import__"):
            name = node.args[0] if node.args else None
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                yield name.value, node.lineno


def _called(node: ast.Call) -> str:
    return getattr(node.func, "id", getattr(node.func, "attr", ""))


def within(name: str, allowed: set[str]) -> bool:
    return any(name == a or name.startswith(a + ".") for a in allowed)


@pytest.fixture(scope="module")
def linted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], tuple[int, str]]:
    """What import-linter says of a copy of the packages after a line is added to a file."""
    folder = tmp_path_factory.mktemp("copy")
    shutil.copy(ROOT / "pyproject.toml", folder)
    for package in PACKAGES:
        only_code = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, folder / package, ignore=only_code)

    def lint(file: str, line: str) -> tuple[int, str]:
        path = folder / file
        before = path.read_text() if path.exists() else None
        path.write_text(f"{before or ''}\n{line}\n")
        code = "from importlinter.cli import lint_imports as l; raise SystemExit(l(no_cache=True))"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), *sys.path])},
        )  # fmt: skip
        path.unlink() if before is None else path.write_text(before)
        return done.returncode, done.stdout + done.stderr

    return lint


def test_the_contracts_hold(linted: Callable[[str, str], tuple[int, str]]) -> None:
    code, told = linted("flows/round.py", "")
    assert code == 0, told


@pytest.mark.parametrize(
    ("file", "line", "broken"),
    [
        ("flows/round.py", "def f():\n    import torch", "flows hand records on"),
        ("opd_core/spans/metrics.py", "import prefect", "opd_core knows no flow"),
        ("opd_core/video/clip.py", "import storage.files", "flows over storage over opd_core"),
        ("storage/files.py", "import opd_core.config.load", "storage knows only the types"),
        ("opd_core/config/load.py", "import opd_core.rollout.answers", "the rooms of opd_core"),
        ("flows/stage/prepare.py", "import flows.commands.rounds", "the rooms of flows"),
        ("storage/tables/schemas.py", "import storage.runs.run", "the rooms of storage"),
        ("opd_core/update/chunk.py", "import opd_core.update.training_loss", "no circles"),
    ],
)
def test_an_import_against_the_order_is_told(
    linted: Callable[[str, str], tuple[int, str]], file: str, line: str, broken: str
) -> None:
    code, told = linted(file, line)
    assert code == 1
    assert any(broken in text and "BROKEN" in text for text in told.splitlines()), told


def test_a_room_without_a_place_in_the_order_is_told(
    linted: Callable[[str, str], tuple[int, str]],
) -> None:
    code, told = linted("opd_core/new_room.py", "import opd_core.types")
    assert code == 1
    assert "new_room" in told


def test_a_string_imports_only_from_its_own_package() -> None:
    """import-linter does not see `import_module("...")`."""
    outside = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for package in PACKAGES
        for path in modules(package)
        for name, line in imported_by_string(path)
        if name.split(".")[0] != package
    ]
    assert outside == []


def test_storage_knows_only_the_types_and_its_own_libraries() -> None:
    stdlib = set(sys.stdlib_module_names)
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in modules("storage")
        for name, line in imports(path)
        if name.split(".")[0] not in stdlib
        and not within(name, STORAGE_MAY)
        and name != "opd_core"  # of `from opd_core import types`, which also gives opd_core.types
    ]
    assert wrong == []


def test_vllm_is_imported_in_one_file() -> None:
    users = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in modules(package)
        for name, _ in imports(path)
        if within(name, {"vllm"})
    }
    assert users <= {"opd_core/engines/vllm/engine.py"}


def test_an_import_inside_a_function_counts(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text("def f():\n    from prefect import flow\n    return flow\n")
    assert ("prefect", 2) in list(imports(file))


def loaded_by(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after `statement`."""
    code = f"{statement}\nimport sys\nprint(*{{m.split('.')[0] for m in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    "module", ["types", "config.load", "config.sections", "spans.grounding", "focus.select"]
)
def test_light_modules_stay_light(module: str) -> None:
    path = ROOT / "opd_core" / f"{module.replace('.', '/')}.py"
    assert [n for n, _ in imports(path) if within(n, {"torch", "vllm", "transformers"})] == []
    assert not loaded_by(f"import opd_core.{module}") & {"torch", "vllm", "transformers", "av"}


def test_help_is_instant() -> None:
    # By what it loads, not by the clock: a busy machine must not fail it.
    statement = (
        "import contextlib, io, flows.cli\n"
        "with contextlib.redirect_stdout(io.StringIO()):\n"
        "    assert flows.cli.main(['--help']) == 0"
    )
    slow = HEAVY | {"prefect", "polars", "pyarrow", "pydantic", "rich", "numpy"}
    assert not loaded_by(statement) & slow


def test_no_file_is_a_drawer_for_anything() -> None:
    drawers = re.compile(r"^_?(utils?|helpers?|common|misc|stuff)$")
    everything = [p for package in (*PACKAGES, "tests") for p in modules(package)]
    assert [p for p in everything if drawers.match(p.stem)] == []


def test_every_module_says_why_it_exists() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in modules(package)
        if path.read_text().strip() and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert silent == []


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.toml")), ids=lambda p: p.stem)
def test_every_config_loads(path: Path) -> None:
    assert load_config(path).hash


def test_the_packages_are_all_named() -> None:
    named = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
    }
    assert set(named) == found


def test_every_requirement_is_pinned() -> None:
    lines = (ROOT / "requirements-cpu.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert [p for p in pins if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+]+", p)] == []
    names = [re.split("==", p)[0].lower().replace("_", "-") for p in pins]
    assert len(names) == len(set(names))
