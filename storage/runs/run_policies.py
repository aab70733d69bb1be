"""The policies of a run: the base student, then what each committed update has made."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from opd_core.types import Policy, VideoOPDError
from storage.runs import marks, policies, run_folder, trainer_folders
from storage.runs.marks import Checkpoint, LetGo
from storage.runs.rows import RunRows
from storage.runs.running_steps import RunningSteps
from storage.runs.saved_steps import SavedSteps
from storage.tables.provenance import git_commit


class RunPolicies(RunRows):
    """The rows of a run, and the checkpoints that they name."""

    def __init__(self, path: Path, config_hash: str | None, student_path: Path | None) -> None:
        content = run_folder.read(path)
        super().__init__(path, run_folder.teacher_hash(content))
        self.run_id: str = content["run_id"]
        self.created_at: str = content["created_at"]
        self.config_hash = config_hash
        self._base_hash: str = content["student"]["weights_hash"]
        self._base_path = student_path or Path(content["student"]["path"])
        self._cache = run_folder.weights_cache(path)

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
        return self.policy(self.newest_version())

    def newest_version(self) -> int:
        """Of the policies that are committed."""
        updates = self.updates().select("policy_version").collect()
        return max(updates.get_column("policy_version").to_list(), default=0)

    def policy(self, version: int) -> Policy:
        """A committed policy, its weights checked against what was committed."""
        if version == 0:
            self.check_base()
            return Policy(0, self._base_path, self._base_hash)
        policy = self.committed(version)
        self.refuse_let_go(policy)
        stored = policies.read_manifest(policy.path)
        actual = policies.weights_hash(policy.path, self._base_path, self._cache)
        if not policy.weights_hash == stored.get("weights_hash") == actual:
            raise VideoOPDError(
                f"the checkpoint {policy.path} does not hold the weights that were committed as"
                f" policy {version}; restore the folder from a copy of the run"
            )
        return policy

    def committed(self, version: int) -> Policy:
        """A policy as the tables name it; its weights are not looked at, and may be let go."""
        import polars as pl

        if version == 0:
            return Policy(0, self._base_path, self._base_hash)
        row = self.updates().filter(pl.col("policy_version") == version)
        rows = row.select("policy_hash", "checkpoint").collect().rows()
        if not rows:
            raise VideoOPDError(
                f"run {self.path} has no policy {version}; `select policy_version from updates`"
                " lists those it has"
            )
        digest, folder = rows[0]
        return Policy(version, self.path / folder, digest)

    def let_go_of(self, policy: Policy) -> LetGo | None:
        """When and why the weights of a policy were let go; None where they were not."""
        mine = marks.checkpoint(policy.version, policy.path, in_force=True)
        return None if policy.version == 0 or mine is None else mine.let_go

    def refuse_let_go(self, policy: Policy) -> None:
        """Raises `VideoOPDError` where the weights of a policy were let go, saying what there is."""
        if (gone := self.let_go_of(policy)) is not None:
            there = [c.version for c in self.checkpoints() if c.in_force and c.let_go is None]
            raise VideoOPDError(
                f"policy {policy.version} of run {self.path} has no weights any more, they were"
                f" {gone.told()}; take a policy that is still there"
                f" ({', '.join(map(str, (0, *there)))}), or restore {policy.path} from a copy of"
                " the run"
            )

    def checkpoints(self) -> list[Checkpoint]:
        """The folders of all committed policies that have a manifest, superseded ones too."""
        columns = ("policy_version", "checkpoint")
        in_force = set(self.updates().select(columns).collect().rows())
        every = self.scan("updates", superseded=True).select(columns).collect().rows()
        made = (
            marks.checkpoint(row[0], self.path / row[1], row in in_force)
            for row in sorted(every)
        )
        return [checkpoint for checkpoint in made if checkpoint is not None]

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
        return policies.staging_folder(self.path / "policies", version)

    def trainer_staging(self, version: int) -> Path:
        """Where the training of policy `version` may leave something, for `publish_policy`."""
        return trainer_folders.staging_folder(self.path, version)

    def trainer_folder(self, policy: Policy) -> Path | None:
        """What the training of a policy left; None: nothing is kept of it."""
        return trainer_folders.of_policy(self.path, policy)

    def saved_steps(self) -> SavedSteps:
        """Of the update in progress, or of one that was killed."""
        return SavedSteps(self.path)

    def running_steps(self) -> RunningSteps:
        """Of the update in progress, or of one that was killed, for whoever looks on."""
        return RunningSteps(self.path)

    def keep_newest_trainer(self) -> None:
        """Removes what the training of policies before the newest committed one left."""
        trainer_folders.keep_only(self.path, self.current_policy())

    def publish_policy(
        self, staging: Path, parent: Policy, trainer: Path | None = None
    ) -> Policy:
        """Publishes the successor of `parent`; the row appended to `updates` then commits it.
        `trainer` holds what its training left.

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
        name = f"v{version}.take{take}" if take else f"v{version}"
        if trainer is not None:
            digest = policies.weights_hash(staging, self._base_path, self._cache)
            trainer_folders.publish(trainer, self.path, name, digest)
        return policies.publish(
            staging,
            self.path / "policies" / name,
            manifest,
            committed_hash=committed[0] if committed else None,
            base=self._base_path,
            cache=self._cache,
        )

    def relative(self, path: Path) -> str:
        """`path` as rows name it: relative to the run, which may be moved."""
        return path.resolve().relative_to(self.path).as_posix()

    def _writable(self) -> str:
        if self.config_hash is None:
            raise VideoOPDError(
                f"run {self.path} was opened for reading; open it with its config to write"
            )
        return self.config_hash
