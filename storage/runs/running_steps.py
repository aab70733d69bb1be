"""The steps of the update that runs now, as they happen: `RUN/trainer/running-steps.jsonl`.

For whoever looks on. A line a step, appended and never written again: a kill costs the line that was
being written, and no more. An update that goes on at a saved step, or begins again, makes some steps
a second time; the later line counts, and those after it are still to come. Once the row in `updates`
holds the steps, the file goes away. It is for looking on, so an update never ends because it cannot be
written: that is a warning, once.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from opd_core.types import UpdateStep
from storage.files import write_whole
from storage.runs.trainer_folders import TRAINER


class RunningSteps:
    """Those of one run."""

    def __init__(self, run: Path) -> None:
        self.path = run / TRAINER / "running-steps.jsonl"
        self._has_warned = False

    def add(self, version: int, step: UpdateStep) -> None:
        """Note a step of the update that makes policy `version`."""
        with self._warned():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write(_line(version, step))

    def of(self, version: int) -> list[UpdateStep]:
        """The steps so far of the update that makes policy `version`, in order."""
        steps: list[UpdateStep] = []
        for number, step in self._lines():
            if number == version:
                steps = [*(s for s in steps if s.step < step.step), step]
        return steps

    def go_on_at(self, version: int, step: int) -> None:
        """Forget steps from number `step` on, and those of other updates: they are made now."""
        with self._warned():
            kept = [_line(version, one) for one in self.of(version) if one.step < step]
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.path, "".join(kept))

    def clear(self) -> None:
        with self._warned():
            self.path.unlink(missing_ok=True)

    @contextmanager
    def _warned(self) -> Iterator[None]:
        """Warn of a file that cannot be written, the first time."""
        try:
            yield
        except OSError as error:
            if not self._has_warned:
                self._has_warned = True
                warnings.warn(
                    f"the steps of the running update cannot be kept for whoever looks on: {error};"
                    " the update goes on, and its row will hold them",
                    RuntimeWarning, stacklevel=4,
                )  # fmt: skip

    def _lines(self) -> Iterator[tuple[int, UpdateStep]]:
        """Those that are whole."""
        try:
            lines = self.path.read_text().splitlines()
        except FileNotFoundError:
            return
        for line in lines:
            with suppress(ValueError, KeyError, TypeError):
                content = json.loads(line)
                yield content.pop("policy_version"), UpdateStep(**content)


def _line(version: int, step: UpdateStep) -> str:
    """Begun on a line of its own, also where a kill or a full disk has cut the last one."""
    return "\n" + json.dumps({"policy_version": version, **asdict(step)}) + "\n"
