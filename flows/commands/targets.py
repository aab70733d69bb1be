"""What a command is about: RUN, RUN@3, CONFIG - a folder or a file, and which of them it may be."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flows.console.progress import is_quiet
from opd_core.types import VideoOPDError
from storage.files import short

if TYPE_CHECKING:
    from storage.runs.run import Run

OpenRun = Callable[[str], "Run"]


@dataclass(frozen=True, slots=True)
class ConfigTarget:
    """A config file, with overrides that are whole: no path in them depends on a folder."""

    file: str
    overrides: tuple[str, ...]


def config_target(name: str, overrides: Sequence[str]) -> ConfigTarget:
    """Read what CONFIG and `--set` mean.

    A run's folder stands for the config that it was run with last.

    Raises `VideoOPDError` where that config is not known any more, or is now another run's.
    """
    from opd_core.config.load import load_config
    from opd_core.config.paths import from_folder

    given = from_folder(overrides, Path.cwd())
    if not Path(name).is_dir():
        return ConfigTarget(name, given)
    from storage.runs import run_folder

    folder = Path(name).resolve()
    known = run_folder.config_source(folder)
    if known is None:
        run_folder.read(folder)
        raise VideoOPDError(
            f"{name} is a run and does not say which config file made it; give that file"
        )
    file = short(known.file)
    if not known.file.is_file():
        raise VideoOPDError(
            f"run {name} was made by the config {file}, which is gone; put it back, or give another"
        )
    again = (*known.overrides, *given)
    place = load_config(known.file, again).run.path
    if place != folder:
        raise VideoOPDError(
            f"run {name} was made by the config {file}, whose run.path is {short(place)} now; give "
            f"the config, with --set run.path={name}"
        )
    if not is_quiet():
        print(f"config {known.words}", file=sys.stderr)
    return ConfigTarget(str(file), again)


@contextmanager
def opening() -> Iterator[OpenRun]:
    """Open runs for reading: `open_run("RUN@3")`, by a folder or a config.

    What goes wrong because a table of one of them is damaged is told in one sentence.
    """
    from storage.tables import damage

    paths: list[Path] = []

    def open_run(name: str) -> Run:
        path, number = _place(name)
        paths.append(path)
        from storage.runs.run import Run

        return Run.open(path, number)

    with damage.told(paths):
        yield open_run


def split_round(name: str) -> tuple[str, int | None]:
    """Split `RUN@3` into (`RUN`, 3); a name that exists stays whole."""
    path, at, number = name.rpartition("@")
    if not at or not number.isdecimal() or Path(name).exists():
        return name, None
    return path, int(number)


def _place(name: str) -> tuple[Path, int | None]:
    """Find the run's folder and the round. Raises `VideoOPDError` where there is none."""
    name, number = split_round(name)
    path = Path(name)
    if path.is_file():
        from opd_core.config.load import load_config

        path = load_config(path).run.path
        if not path.exists():
            raise VideoOPDError(
                f"there is no run at {path} yet; start it with `videoopd run {name}`"
            )
    elif not path.exists():
        near = _near(path)
        hint = f"did you mean {near}?" if near else "give the folder of a run, or its config"
        raise VideoOPDError(f"{name} is no run: there is nothing of that name; {hint}")
    return path, number


def _near(path: Path) -> Path | None:
    """Find what is there and is called almost so."""
    if not path.parent.is_dir():
        return None
    near = difflib.get_close_matches(path.name, [p.name for p in path.parent.iterdir()], n=1)
    return path.parent / near[0] if near else None
