"""A run folder: where the evidence of one training run is, and the only way the stages get at it.

    run.json                   run id, when it began, base student and teacher with their hashes
    configs/<hash>.json        every config the run was continued with
    config_source.json         the file, and its overrides, that it was continued with last
    hub.json                   the commits that names of models on the hub mean in this run
    tables/<name>.lance        see `storage/tables/schemas.py`; or in a store (`storage/tables/place.py`)
    policies/v<version>/       published checkpoints with a manifest.json; 0 is the base student
    trainer/v<version>/        what training goes on from, of the newest policy
    trainer/steps/             the last saved step of the update in progress
    trainer/running-steps.jsonl  its steps so far, for whoever looks on
    audit.json                 what the last `videoopd audit` said
    .locks/  .cache/           who is working on it now; hashes of untouched folders

A run may be moved: paths in rows are relative to it, and the student's may change with the config.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Self

from opd_core.types import VideoOPDError
from storage import locks
from storage.files import disk_troubles, write_whole
from storage.runs import policies, run_folder
from storage.runs.begun import Begun, begin
from storage.runs.run_policies import RunPolicies
from storage.tables import cleanup, history, older_formats, upkeep
from storage.tables.lance_tables import Tables
from storage.tables.provenance import Provenance, git_commit
from storage.tables.schemas import TABLES


class Run(RunPolicies):
    """An open run. For writing when it was opened with a config, else for reading only."""

    def __init__(
        self,
        path: Path,
        config_hash: str | None,
        student_path: Path | None,
        round: int | None = None,
    ) -> None:
        super().__init__(path, config_hash, student_path)
        self.round = round
        self._attempts: dict[tuple[str, int | None], str] = {}

    @classmethod
    def open(cls, path: str | Path, round: int | None = None) -> Self:
        """An existing run, for reading: as it is now, or as it was when round `round` was finished.

        Round k makes policy k; every table is then read at its tag `round-k`, and nothing else is
        filtered. Raises `VideoOPDError` when `path` is no run, and when it has not finished the
        round (the tags are set one after the other, so a round may be finished in part).
        """
        run = cls(Path(path).resolve(), None, None, round)
        if round is not None:
            finished = run._finished()
            if round not in finished:
                known = ", ".join(map(str, finished)) or "none yet"
                raise VideoOPDError(
                    f"run {run.path} has not finished round {round}; give one of those it has:"
                    f" {known}"
                )
            run._tag = finished[round]
        return run

    def finished_rounds(self) -> list[int]:
        """The rounds that `finish_round` has tagged in every table, in order."""
        return list(self._finished())

    def is_finished(self, version: int) -> bool:
        """Whether `finish_round` has tagged every table with policy `version` as it is now."""
        tag = self.round_tag(version)
        return all(tag in history.tags(self.tables.folder, name) for name in self.tables.names)

    def version_of_round(self) -> int:
        """The policy that the round to work on samples from: the newest, or its parent while the
        round that made it is not finished."""
        newest = self.newest_version()
        return newest if not newest or self.is_finished(newest) else newest - 1

    def round_tag(self, version: int) -> str:
        """`round-3`; `round-3.1` where the update that makes policy 3 was run again."""
        take = self.takes().take("update", version - 1)
        return f"round-{version}.{take}" if take else f"round-{version}"

    def _finished(self) -> dict[int, str]:
        """round -> its newest tag that every table has, in order."""
        folder = self.tables.folder
        tags = set.intersection(*(set(history.tags(folder, n)) for n in self.tables.names))
        finished = [
            (int(match[1]), int(match[2] or 0), tag)
            for tag in tags
            if (match := re.fullmatch(r"round-(\d+)(?:\.(\d+))?", tag))
        ]
        return {number: tag for number, _, tag in sorted(finished)}

    @classmethod
    def create(
        cls,
        path: str | Path,
        config_json: str,
        config_hash: str,
        student_path: str | Path,
        *teacher_paths: str | Path,
        store: str | None = None,
        known_hashes: Mapping[Path, str] | None = None,
    ) -> Self:
        """A new run, for writing. Completes one whose creation was killed; opens one that exists.
        The tables of a new one are in its folder, or below `store` (`s3://bucket/prefix`).

        `known_hashes`: what stands for the hash of a teacher whose weights are not in its folder.

        Raises `VideoOPDError` when the folder holds something else, or when the student's weights
        are not the ones the run began with.
        """
        path, student = Path(path).resolve(), Path(student_path).resolve()
        teachers = [Path(teacher).resolve() for teacher in teacher_paths]
        run_folder.refuse_foreign(path)
        run_folder.refuse_file_system(path)
        with disk_troubles(path), locks.held(run_folder.lock_file(path, "create"), "create", 600.0):
            run_folder.refuse_other_store(path, store)
            run_folder.build(path, config_hash, student, teachers, known_hashes or {}, store)
            run = cls(path, config_hash, student)
            run.tables.refuse_to_write()
            run.check_base()
            policies.rebase(path / "policies", student)
            config = path / "configs" / f"{config_hash}.json"
            if not config.exists():
                config.parent.mkdir(exist_ok=True)
                write_whole(config, config_json)
        return run

    def migrate(self) -> dict[str, list[str]]:
        """Brings the tables of an older format up to today's: table -> the columns it was given."""
        with self.exclusive("round"):
            given = older_formats.migrate(self.tables.folder)
        self.tables = Tables.open(self.tables.folder)
        return given

    def older_rows_end(self) -> datetime | None:
        """Rows written before it are of an older format; None where there are none such."""
        return older_formats.older_rows_end(self.tables.folder)

    def begin(
        self, stage: str, version: int, config_words: Callable[[Self], str], force: bool = False
    ) -> Begun:
        """Begin a stage of the round of policy `version`: all of it again with `force`, or where
        its rows are stale; else what is missing of it. `config_words` says what people type for
        the run's config; it is asked only for a refusal.

        Nothing is written before `Begun.new_take`; call that under `exclusive("round")`. Raises
        `VideoOPDError` naming the stage that has to be run again first, where what this one would
        be computed from is stale, and with `force` where a stage cannot be run again.
        """
        supersede = partial(self._supersede, stage, version)
        return begin(self.takes, stage, version, force, supersede, partial(config_words, self))

    def _supersede(self, stage: str, version: int, because: str) -> None:
        """Let `stage` write the next take of a round from now on; its rows so far are superseded.

        What was computed from them becomes stale; a new take of `update` supersedes all that was
        made with later policies.
        """
        rows = self.takes().next_take(stage, version, because, self.rows_by_take())
        self.append("reruns", rows, stage=stage, policy_version=version)
        for row in rows:
            self._attempts.pop((row.stage, row.policy_version), None)

    def append(
        self,
        name: str,
        records: Sequence[Any],
        *,
        stage: str | None = None,
        policy_version: int | None = None,
    ) -> int:
        """Appends what has no row yet and returns how many that were.

        `stage` is by default the table's one writer; for `quarantine` it must be given.
        """
        stage = stage or (TABLES[name].writer if name in TABLES else None)
        if stage is None:
            raise ValueError(f"append to {name!r} needs the name of the stage")
        of_a_round = name in TABLES and TABLES[name].round_column is not None
        attempt = self._attempts.setdefault((stage, policy_version), str(uuid.uuid4()))
        provenance = Provenance(
            run_id=self.run_id,
            stage=stage,
            policy_version=policy_version,
            config_hash=self._writable(),
            git_commit=git_commit(),
            attempt=attempt,
            take=self.takes().take(stage, policy_version) if of_a_round else 0,
        )
        return self.tables.append(name, records, provenance)

    @contextmanager
    def exclusive(self, stage: str, timeout: float = 0.0) -> Iterator[None]:
        """One process at a time in `stage` of this run; the next one is told who is in it."""
        with locks.held(run_folder.lock_file(self.path, stage), stage, timeout):
            self._attempts.clear()
            yield

    def finish_round(self, version: int) -> dict[str, int]:
        """Compacts every table and tags it (`round_tag`); returns the tagged versions.

        Then removes what only the rounds before the last needed (`storage/tables/cleanup.py`).
        """
        tag, tagged = self.round_tag(version), {}
        for name in TABLES:
            self.tables.compact(name)
            upkeep.upkeep(self.tables, name)
            tagged[name] = self.tables.tag(name, tag)
            cleanup.clean_up(self.tables, name, self.run_id, since_tag=f"round-{version - 1}")
        self.saved_steps().clear()  # of a kill between the update's row and this
        self.running_steps().clear()
        return tagged
