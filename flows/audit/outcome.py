"""What the last `videoopd audit` of a run said, kept beside it for whoever looks: `RUN/audit.json`.

An audit takes minutes and a page must not run one. What is kept says when, of which round, how
deep, and at which versions of the tables: so a reader sees what came since.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.audit.walk import Depth, Verdict
from opd_core.types import VideoOPDError
from storage.audit.links import Checked
from storage.files import disk_troubles, write_json

if TYPE_CHECKING:
    from storage.runs.run import Run

AUDIT_FILE = "audit.json"


@dataclass(frozen=True, slots=True)
class Outcome:
    """An audit that has walked to the end."""

    at: str
    """UTC, when it began."""
    round: int | None
    """Of RUN@3; None: the run as it was then."""
    depth: Depth
    verdicts: tuple[Verdict, ...]
    table_versions: dict[str, int | None]
    """As they were when it began; None: a table that could not be opened."""

    @property
    def broken(self) -> list[Verdict]:
        return [verdict for verdict in self.verdicts if verdict.broken]

    @property
    def let_go(self) -> int:
        """Parts that can be neither proven nor refuted, because they were let go on purpose."""
        return sum(len(verdict.checked.let_go) for verdict in self.verdicts if verdict.checked)

    def changed(self, run: Run) -> list[str]:
        """The tables that have other rows now than when the audit began, as far as one can tell: a
        compaction counts as well."""
        now = _versions(run)
        return [name for name, version in now.items() if self.table_versions.get(name) != version]


class Auditing:
    """An audit that runs now; `keep` what it said once it is at its end."""

    def __init__(self, run: Run, depth: Depth) -> None:
        self._run, self._depth = run, depth
        self._at = datetime.now(UTC).isoformat(timespec="seconds")
        self._versions = _versions(run)

    def keep(self, verdicts: Sequence[Verdict]) -> None:
        """Raises `VideoOPDError` where the run's folder cannot be written."""
        content = {
            "at": self._at,
            "round": self._run.round,
            "depth": asdict(self._depth),
            "links": [asdict(verdict) for verdict in verdicts],
            "table_versions": self._versions,
        }
        with disk_troubles(self._run.path):
            write_json(self._run.path / AUDIT_FILE, content)


def last(run: Path) -> Outcome | None:
    """What the last audit of the run in this folder said; None: none was kept.

    Raises `VideoOPDError` where the file is damaged.
    """
    file = run / AUDIT_FILE
    try:
        content = json.loads(file.read_text())
        return Outcome(
            at=content["at"],
            round=content["round"],
            depth=Depth(**content["depth"]),
            verdicts=tuple(_verdict(link) for link in content["links"]),
            table_versions=content["table_versions"],
        )
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        raise VideoOPDError(
            f"{file} is damaged; remove it, and run `videoopd audit` again"
        ) from None


def _versions(run: Run) -> dict[str, int | None]:
    """Of every table; one that is damaged is for the audit to tell."""

    def version(name: str) -> int | None:
        try:
            return run.tables.version(name)
        except (VideoOPDError, OSError, ValueError):
            return None

    return {name: version(name) for name in run.tables.names}


def _verdict(link: dict[str, Any]) -> Verdict:
    checked = link["checked"]
    if checked is not None:
        lists = {name: tuple(checked[name]) for name in ("notes", "let_go")}
        checked = Checked(checked["count"], checked["of"], **lists)
    return Verdict(link["link"], checked, link["broken"])
