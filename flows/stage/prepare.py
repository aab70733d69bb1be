"""Before a stage: open the run of a config, and bring what the user gave into its tables."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import polars as pl

from flows.stage.memory_check import refuse_what_cannot_fit
from flows.stage.models import remember_commits, with_folders
from flows.stage.processor_cache import processor_hash_of
from flows.stage.read_data import import_annotations
from flows.stage.shared_folders import refuse_unshared
from flows.stage.uses import waiting
from flows.teachers import Teacher, Teachers, check_shares, shares
from opd_core.adapter_folder import base_folder, is_adapter
from opd_core.cluster.connection import staying_connected
from opd_core.config.load import Config, load_config
from opd_core.extensions import ENGINES, installed_tracker
from opd_core.focus.select import needs_predictions
from opd_core.prompts.question_key import prediction_question
from opd_core.rollout.sampler import sampler_of
from opd_core.types import GroundingExample, Policy, VideoOPDError
from opd_core.update.continuation import continuation
from opd_core.video.presence import refuse_missing_folder
from storage import locks
from storage.frames.store import FrameStore, usage
from storage.runs.run import Run
from storage.runs.run_folder import (
    check_place,
    config_source,
    lock_file,
    no_run_if_refused,
    refresh_config,
    remember_config,
    weights_cache,
)
from storage.stages import policy_version_of, round_number, stage_named
from storage.tables import damage


class WorkLeft(Exception):
    """A stage has something to do, and was only looked at."""


@dataclass(frozen=True)
class Work:
    """What every stage needs: the run, its config, and the frozen teachers."""

    config: Config
    run: Run
    teachers: Teachers
    looking: bool = False
    """Nothing is to be computed: it is asked whether there is anything."""
    begins: Callable[[], None] = lambda: None
    """Called once there is something to compute; waits until what it takes is free."""

    def about_to_work(self) -> None:
        """A stage calls it once it knows that something is missing, before it writes a row or
        imports what computes. Raises `WorkLeft` where it is only looked at."""
        if self.looking:
            raise WorkLeft
        with waiting():
            self.begins()

    def predictions(self) -> pl.LazyFrame:
        """The own answers of each example's teacher, to what it is asked; none where the curriculum
        needs none."""
        rows = self.run.teacher_predictions()
        needed = needs_predictions(self.config.focus)
        return rows.filter(self.teachers.predictions() if needed else pl.lit(False))

    def samplers(
        self, version: int, examples: Sequence[GroundingExample]
    ) -> Iterator[tuple[Config, Policy, Sequence[GroundingExample]]]:
        """Whose weights answer which examples in the round of policy `version`, and the config to
        ask them with: each teacher its own, where `rollout.source` is the teacher."""
        if self.config.rollout.source != "teacher":
            yield self.config, sampler_of(self.config, version, self.run.policy), examples
            return
        for teacher in self.teachers:
            yield teacher.config, teacher.policy(version), teacher.own(examples)

    def policy(self, version: int | None = None) -> Policy:
        """The current policy, or an earlier one."""
        current = self.run.current_policy()
        if version is None or version == current.version:
            return current
        if version > current.version:
            raise VideoOPDError(
                f"there is no policy {version} yet: the current policy is {current.version}; "
                f"give one from 0 to {current.version}"
            )
        return self.run.policy(version)

    def answering(self, version: int | None) -> Policy:
        """The policy whose answers are wanted. While it is only asked whether any is missing, its
        weights may have been let go."""
        if self.looking and version is not None and version <= self.run.current_policy().version:
            policy = self.run.committed(version)
            if self.run.let_go_of(policy) is not None:
                return policy
        return self.policy(version)

    def policy_at(self, stage: str, round: int | None) -> Policy:
        """What a stage of a round works with: round k samples from policy k - 1, makes policy k
        and evaluates that. Of no round in particular: the current policy."""
        if round is None:
            return self.run.current_policy()
        newest = round_number(stage, self.run.current_policy().version)
        first = round_number(stage, 0)
        if not first <= round <= newest:
            raise VideoOPDError(
                f"there is nothing to {stage} in round {round}; "
                f"give a round from {first} to {newest}"
            )
        version = policy_version_of(stage, round)
        made = stage_named(stage).of_made_policy
        return self.answering(version) if made else self.policy(version)

    def continuation(self, policy: Policy) -> str | None:
        """Why training on from this policy begins with a new optimiser; None: it goes on.

        Raises `VideoOPDError` where the config would not train what it says: asked before a round
        samples anything, and again before its update.
        """
        earlier = self.run.config_of_policy(policy)
        section = None if earlier is None else earlier["update"]
        trainer = self.run.trainer_folder(policy)
        return continuation(self.config, policy.path, policy.version, section, trainer)

    def policy_of_round(self) -> Policy:
        """The policy that the round to work on samples from.

        The newest committed one; or its parent while the round that committed it, killed after
        that, is not finished (evaluated, tables tagged).
        """
        return self.policy(self.run.version_of_round())


def check_folders(config: Config, name: str) -> None:
    """Raise `VideoOPDError` where the config, read from the file `name`, has no model to open or
    no place for its run. Names on the hub are `with_folders`'s."""
    for role, folder in config.model_paths().items():
        if folder.is_absolute() and not folder.is_dir():
            raise VideoOPDError(
                f"there is no model folder at {folder}; correct {role}.path in {name}"
            )
    if not config.run.path.exists():  # later, the stages that need videos look for them
        refuse_missing_folder(config.data.videos)
    check_place(config.run.path)


def check_weights(run: Path, *folders: Path) -> None:
    """Raise `VideoOPDError` unless the folders hold all weights of their models.

    What the run has hashed, and nothing has touched since, was looked at before.
    """
    known = weights_cache(run)
    for folder in folders:
        if known.get(folder) is None:
            from opd_core.model.checkpoint import check_checkpoint  # and with it torch

            check_checkpoint(folder)


def refuse_missing_trackers(config: Config) -> None:
    """Raise `VideoOPDError` where the package of a tracker of the config is not installed."""
    for name in config.tracking.to:
        installed_tracker(name)


def refuse_busy(config: Config) -> None:
    """Raise `VideoOPDError` naming the process that works on the run, where there is one."""
    locks.refuse_held(lock_file(config.run.path, "round"))


@contextmanager
def opened(
    config: str,
    overrides: Sequence[str] | None = None,
    *,
    looking: bool = False,
    goes_on: bool = True,
    stages: Sequence[str] | None = None,
) -> Iterator[Work]:
    """The run of a config, for writing, with this process as its only writer.

    The run remembers the config and the overrides that it went on with last; not those of a
    question beside its rounds, with `goes_on=False`.

    Makes the run where there is none, checks that student and teacher fit, and imports the
    annotations that are not in its tables yet. Refused before anything is computed, it leaves no
    folder behind. `looking`: only to see whether a stage has anything to do, without what computing
    takes. `stages`: those that are to be done, of which each has to fit into memory; None: all.
    """
    written = load_config(config, overrides or ())
    refuse_busy(written)
    check_folders(written, config)
    if not looking:
        refuse_missing_trackers(written)
        refuse_what_cannot_fit(written, stages)
    loaded = with_folders(written, config)
    with (
        no_run_if_refused(loaded.run.path),
        damage.told([loaded.run.path]),
        _writing(written, loaded, looking) as work,
    ):
        if goes_on or config_source(work.run.path) is None:
            remember_config(work.run.path, Path(config), overrides or ())
            refresh_config(work.run.path, loaded.hash, loaded.to_json())
        yield work


@contextmanager
def _writing(written: Config, loaded: Config, looking: bool) -> Iterator[Work]:
    from opd_core.model.architectures import architecture_in
    from opd_core.model.vocabulary import check_same_vocabulary

    teachers = [teacher.path for teacher in loaded.all_teachers]
    elsewhere = _elsewhere(loaded)
    for teacher in loaded.all_teachers:
        check_same_vocabulary(loaded.student.path, teacher.path)
    check_weights(loaded.run.path, *({loaded.student.path, *teachers} - elsewhere.keys()))
    for teacher in loaded.all_teachers:
        full = base_folder(teacher.path) if is_adapter(teacher.path) else teacher.path
        architecture_in(full).refuse_quantise(teacher.quantise)
    if not looking:
        from opd_core.model.tree_model import set_threads

        set_threads(loaded.machine.threads)
    run = Run.create(
        loaded.run.path,
        loaded.to_json(),
        loaded.hash,
        loaded.student.path,
        *teachers,
        store=loaded.storage.tables,
        known_hashes=elsewhere,
    )
    remember_commits(written, loaded)  # before a long import, which may be killed
    frames = nullcontext() if looking else decoding_once(loaded)
    with run.exclusive("round"):
        import_annotations(run, loaded)
        with frames, staying_connected():
            if not looking:
                refuse_unshared(loaded)
            yield Work(loaded, run, _teachers(loaded, run), looking)


def _teachers(config: Config, run: Run) -> Teachers:
    """Raises `VideoOPDError` where a training example is no teacher's."""

    def question(alone: Config) -> str:
        return prediction_question(alone, processor_hash_of(alone.teacher.path, run.path))

    own, elsewhere = shares(config, run), _elsewhere(config)
    if config.teachers:
        check_shares(config, run, own)

    def of_one(alone: Config, ids: frozenset[str] | None) -> Teacher:
        folder = alone.teacher.path
        digest = elsewhere.get(folder) or run.weights_hash(folder)
        return Teacher(alone, digest, ids, partial(question, alone))

    return Teachers(map(of_one, config.of_each_teacher(), own))


def _elsewhere(config: Config) -> dict[Path, str]:
    """Folder of a teacher whose weights are not here but with the server that its engine asks ->
    what stands for their hash."""
    known: dict[Path, str] = {}
    for alone in config.of_each_teacher():
        identity, folder = ENGINES[alone.teacher.engine].identity, alone.teacher.path
        if identity is not None and not any(folder.glob("*.safetensors")):
            known[folder] = identity(alone)
    return known


@contextmanager
def decoding_once(config: Config) -> Iterator[None]:
    """Let every stage of this process read frames through the store of the config meanwhile."""
    folder = config.frames_path
    if folder is None:
        yield
        return
    from opd_core.prompts.batches import reading_through

    is_new = not folder.exists()
    try:
        store = FrameStore.open(folder, int(config.frames.max_gib * 2**30))
    except VideoOPDError as error:
        if config.frames.path is not None:
            raise
        warnings.warn(f"no frames are kept: {error}", RuntimeWarning, stacklevel=3)
        yield
        return
    try:
        with reading_through(store):
            yield
    except VideoOPDError:
        stored = usage(folder)
        if is_new and (stored is None or not stored.clips):
            shutil.rmtree(folder, ignore_errors=True)
        raise
