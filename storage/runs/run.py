"""A run folder: where the evidence of one training run is, and the only way the stages get at it.

    run.json                   run id, when it began, base student and teacher with their hashes
    configs/<hash>.json        every config the run was continued with
    config_source.json         the file, and its overrides, that it was continued with last
    tables/<name>.lance        see `storage/tables/schemas.py`
    policies/v<version>/       published checkpoints with a manifest.json; 0 is the base student
    .locks/  .cache/           who is working on it now; hashes of untouched folders

A run may be moved: paths in rows are relative to it, and the student's may change with the config.
"""

from __future__ import annotations

import json
import re
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from opd_core.types import GroundingExample, Policy, Rerun, VideoOPDError
from storage.tables import cleanup, history, older_formats, present, upkeep, views
from storage import locks
from storage.runs import policies, run_folder
from storage.files import disk_troubles, write_whole
from storage.tables.provenance import Provenance, git_commit
from storage.tables.records import from_rows
from storage.tables.schemas import TABLES
from storage.tables.lance_tables import Tables
from storage.tables.takes import StageRound, Takes

if TYPE_CHECKING:
    import polars as pl

Record = TypeVar("Record")


class Run:
    """An open run. For writing when it was opened with a config, else for reading only."""

    def __init__(
        self,
        path: Path,
        config_hash: str | None,
        student_path: Path | None,
        round: int | None = None,
    ) -> None:
        content = run_folder.read(path)
        self.path = path
        self.run_id: str = content["run_id"]
        self.created_at: str = content["created_at"]
        self.config_hash = config_hash
        self.tables = Tables.open(path / "tables")
        self.round = round
        self._tag: str | None = None
        self._takes: dict[int, Takes] = {}
        self.teacher_hash: str = content["teacher"]["weights_hash"]
        """Of the teacher that the run began with."""
        self._base_hash: str = content["student"]["weights_hash"]
        self._base_path = student_path or Path(content["student"]["path"])
        self._cache = run_folder.weights_cache(path)
        self._attempts: dict[tuple[str, int | None], str] = {}

    # --- opening -------------------------------------------------------------------------------

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

    def round_tag(self, version: int) -> str:
        """`round-3`; `round-3.1` where the update that makes policy 3 was run again."""
        take = self.takes().take("update", version - 1)
        return f"round-{version}.{take}" if take else f"round-{version}"

    def _finished(self) -> dict[int, str]:
        """round -> its newest tag that every table has, in order."""
        folder = self.tables.folder
        tags = set.intersection(*(set(history.tags(folder, n)) for n in self.tables.names))
        found = [
            (int(match[1]), int(match[2] or 0), tag)
            for tag in tags
            if (match := re.fullmatch(r"round-(\d+)(?:\.(\d+))?", tag))
        ]
        return {number: tag for number, _, tag in sorted(found)}

    @classmethod
    def create(
        cls,
        path: str | Path,
        config_json: str,
        config_hash: str,
        student_path: str | Path,
        teacher_path: str | Path,
    ) -> Self:
        """A new run, for writing. Completes one whose creation was killed; opens one that exists.

        Raises `VideoOPDError` when the folder holds something else, or when the student's weights
        are not the ones the run began with.
        """
        path, student, teacher = (Path(p).resolve() for p in (path, student_path, teacher_path))
        run_folder.refuse_foreign(path)
        with disk_troubles(path), locks.held(run_folder.lock_file(path, "create"), "create", 600.0):
            run_folder.build(path, config_hash, student, teacher)
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

    # --- policies ------------------------------------------------------------------------------

    def check_base(self) -> None:
        """Raises `VideoOPDError` when the base student is gone or its weights have changed."""
        if self.weights_hash(self._base_path) != self._base_hash:
            raise VideoOPDError(
                f"the weights in {self._base_path} are not those run {self.path} began with; put"
                " the original student back, or start a new run in another folder"
            )

    def weights_hash(self, folder: str | Path) -> str:
        """Hash of a checkpoint's weights; a few `stat` calls while nothing touched it."""
        return policies.published_hash(Path(folder).resolve(), self._cache)

    def current_policy(self) -> Policy:
        """The newest committed policy in force, or the base student before the first update."""
        updates = self.updates().select("policy_version").collect()
        return self.policy(max(updates.get_column("policy_version").to_list(), default=0))

    def policy(self, version: int) -> Policy:
        """A committed policy, its weights checked against what was committed."""
        if version == 0:
            self.check_base()
            return Policy(0, self._base_path, self._base_hash)
        import polars as pl

        row = self.updates().filter(pl.col("policy_version") == version)
        found = row.select("policy_hash", "checkpoint").collect().rows()
        if not found:
            raise VideoOPDError(
                f"run {self.path} has no policy {version}; `select policy_version from updates`"
                " lists those it has"
            )
        digest, checkpoint = found[0]
        folder = self.path / checkpoint
        stored = policies.read_manifest(folder).get("weights_hash")
        actual = policies.weights_hash(folder, self._base_path, self._cache)
        if not digest == stored == actual:
            raise VideoOPDError(
                f"the checkpoint {folder} does not hold the weights that were committed as policy"
                f" {version}; restore the folder from a copy of the run"
            )
        return Policy(version, folder, digest)

    def config_of_policy(self, policy: Policy) -> dict[str, Any] | None:
        """The config, as JSON, that a policy was made with; None for the base."""
        if policy.version == 0:
            return None
        digest = policies.read_manifest(policy.path).get("config_hash")
        path = self.path / "configs" / f"{digest}.json"
        try:
            content: dict[str, Any] = json.loads(path.read_text())
        except (OSError, ValueError):
            raise VideoOPDError(
                f"{path}, the config that policy {policy.version} was made with, is not readable;"
                " restore it from a copy of the run"
            ) from None
        return content

    def staging_folder(self, version: int) -> Path:
        """An empty folder to save policy `version` into, then `publish_policy`.

        What killed attempts at this version left is removed: call it under `exclusive("update")`.
        """
        folder = self.path / "policies"
        for leftover in list(folder.glob(f".v{version}.*-*")):
            shutil.rmtree(leftover)
        staging = folder / f".v{version}.staging-{uuid.uuid4().hex[:8]}"
        staging.mkdir(parents=True)
        return staging

    def publish_policy(self, staging: Path, parent: Policy) -> Policy:
        """Publishes the successor of `parent`; the row appended to `updates` then commits it.

        The row's `policy_hash` is the reference's `weights_hash`, its `checkpoint` is
        `run.relative(reference.path)`.
        """
        import polars as pl

        version = parent.version + 1
        take = self.takes().take("update", parent.version)
        row = self.updates().filter(pl.col("policy_version") == version)
        committed = row.select("policy_hash").collect().get_column("policy_hash").to_list()
        manifest = {
            "policy_version": version,
            "parent_version": parent.version,
            "parent_hash": parent.weights_hash,
            "config_hash": self._writable(),
            "git_commit": git_commit(),
            "created_at": datetime.now(UTC).isoformat(),
            "table_versions": self.tables.versions(),
            "run_id": self.run_id,
        }
        return policies.publish(
            staging,
            self.path / "policies" / (f"v{version}.take{take}" if take else f"v{version}"),
            manifest,
            committed_hash=committed[0] if committed else None,
            base=self._base_path,
            cache=self._cache,
        )

    def relative(self, path: Path) -> str:
        """`path` as rows name it: relative to the run, which may be moved."""
        return path.resolve().relative_to(self.path).as_posix()

    # --- tables --------------------------------------------------------------------------------

    def scan(self, name: str, superseded: bool = False) -> pl.LazyFrame:
        """A table by name, as of the round that the run was opened at.

        Without the rows that a rerun has superseded or made stale (`storage/tables/takes.py`), unless
        `superseded`.
        """
        frame = self.tables.scan(name, self.version)
        shown = None if superseded else self._shown(name)
        return frame if shown is None else frame.filter(shown)

    @property
    def version(self) -> str | None:
        """The tag that every table is read at; None: as they are now."""
        return self._tag

    def takes(self) -> Takes:
        """Which stages of which rounds were run again."""
        number = self.tables.version("reruns", self.version)
        if number not in self._takes:
            rows = self.tables.read("reruns", Rerun, version=number)
            self._takes = {number: Takes(tuple(sorted(rows, key=lambda row: row.sequence)))}
        return self._takes[number]

    def begin_take(self, stage: str, version: int, because: str) -> Rerun:
        """From now on `stage` writes the next take of a round; its rows so far are superseded.

        Call it under `exclusive("round")`. What was computed from them becomes stale; a new take of
        `update` supersedes all that was made with later policies.
        """
        rows = self.takes().begin(stage, version, because, self._written())
        self.append("reruns", rows, stage=stage, policy_version=version)
        for row in rows:
            self._attempts.pop((row.stage, row.policy_version), None)
        return rows[0]

    def _written(self) -> dict[StageRound, int]:
        """Rows of the newest take of each stage and round."""
        takes, counts = self.takes(), dict[StageRound, int]()
        for (stage, round, take), count in self.rows_by_take().items():
            if take == takes.take(stage, round):
                counts[stage, round] = count
        return counts

    def rows_by_take(self) -> dict[tuple[str, int, int], int]:
        """(stage, its policy_version, take) -> rows, in all tables whose rows are of a round."""
        import polars as pl

        counts: dict[tuple[str, int, int], int] = {}
        for name, spec in TABLES.items():
            if spec.round_column is None:
                continue
            stage = pl.lit(spec.writer) if spec.writer else pl.col("stage")
            frame = self.scan(name, superseded=True).select(
                stage.alias("stage"), pl.col(spec.round_column).alias("round"), "take"
            )
            found = frame.drop_nulls("round").group_by("stage", "round", "take").len().collect()
            for *key, count in found.iter_rows():
                counts[tuple(key)] = counts.get(tuple(key), 0) + count
        return counts

    def _take(self, name: str, stage: str, round: int | None) -> int:
        of_a_round = name in TABLES and TABLES[name].round_column is not None
        return self.takes().take(stage, round) if of_a_round else 0

    def _shown(self, name: str) -> pl.Expr | None:
        spec = TABLES.get(name)
        return None if spec is None or spec.round_column is None else self.takes().shown(spec)

    def trajectories(self) -> pl.LazyFrame:
        """One row a rollout: example, answer, teacher, score, selection, update."""
        return views.trajectories(self.scan, self.teacher_hash)

    def tokens(self, texts: views.Texts | None = None) -> pl.LazyFrame:
        """One row a token of an answer; `texts` (ids -> texts) fills in the column `text`."""
        return views.tokens(self.scan, self.teacher_hash, texts)

    def examples(self) -> pl.LazyFrame:
        """Every annotation that the run has ever read, as it was first read."""
        return self.scan("examples")

    def present(self) -> pl.LazyFrame:
        """Those that the annotation files hold now, as they are there (`storage/tables/present.py`)."""
        return present.present(self.scan)

    def present_examples(self, filter: pl.Expr | None = None) -> list[GroundingExample]:
        """The rows of `present` as records; all, or those for which `filter` is true."""
        rows = self.present() if filter is None else self.present().filter(filter)
        return from_rows(GroundingExample, rows.collect().to_arrow())

    def last_known_examples(self, filter: pl.Expr) -> list[GroundingExample]:
        """Those that `filter` is true for, also such as the files hold no longer, as last held."""
        rows = present.latest(self.scan).filter(filter)
        return from_rows(GroundingExample, rows.collect().to_arrow())

    def present_evaluations(self) -> pl.LazyFrame:
        """The answers to what is in the eval split now: what any number is made of."""
        import polars as pl

        asked = self.present().filter(pl.col("split") == "eval").select("example_id")
        return self.evaluations().join(asked, on="example_id", how="semi", maintain_order="left")

    def data_changes(self) -> pl.LazyFrame:
        return self.scan("data_changes")

    def quarantine(self) -> pl.LazyFrame:
        return self.scan("quarantine")

    def draws(self) -> pl.LazyFrame:
        return self.scan("draws")

    def teacher_predictions(self) -> pl.LazyFrame:
        return self.scan("teacher_predictions")

    def rollouts(self) -> pl.LazyFrame:
        return self.scan("rollouts")

    def teacher_scores(self) -> pl.LazyFrame:
        return self.scan("teacher_scores")

    def divergences(self) -> pl.LazyFrame:
        return self.scan("divergences")

    def selections(self) -> pl.LazyFrame:
        return self.scan("selections")

    def trained_rollouts(self) -> pl.LazyFrame:
        return self.scan("trained_rollouts")

    def updates(self) -> pl.LazyFrame:
        return self.scan("updates")

    def evaluations(self) -> pl.LazyFrame:
        return self.scan("evaluations")

    def model_evaluations(self) -> pl.LazyFrame:
        return self.scan("model_evaluations")

    def reruns(self) -> pl.LazyFrame:
        return self.scan("reruns")

    def read(
        self,
        name: str,
        record: type[Record],
        filter: pl.Expr | None = None,
        without: Sequence[str] = (),
    ) -> list[Record]:
        """Rows that `scan` shows as records, in the order they were written; as `Tables.read`."""
        shown = self._shown(name)
        if shown is not None:
            filter = shown if filter is None else shown & filter
        return self.tables.read(name, record, filter, self.version, without)

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
        attempt = self._attempts.setdefault((stage, policy_version), str(uuid.uuid4()))
        provenance = Provenance(
            run_id=self.run_id,
            stage=stage,
            policy_version=policy_version,
            config_hash=self._writable(),
            git_commit=git_commit(),
            attempt=attempt,
            take=self._take(name, stage, policy_version),
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
        return tagged

    def _writable(self) -> str:
        if self.config_hash is None:
            raise VideoOPDError(
                f"run {self.path} was opened for reading; open it with its config to write"
            )
        return self.config_hash
