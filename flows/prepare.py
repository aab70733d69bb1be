"""Before a stage: open the run of a config, and bring what the user gave into its tables."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import polars as pl

from opd_core.config import Config, load_config
from opd_core.curriculum import needs_predictions
from opd_core.question_key import prediction_question
from opd_core.types import GroundingExample, QuarantinedItem, VideoOPDError
from storage import damage
from storage.clip_index import usage
from storage.frames import FrameStore
from storage.policies import PolicyRef
from storage.run import Run
from storage.run_folder import (
    check_place,
    config_source,
    remember_config,
    removed_if_refused,
)
from storage.takes import policy_version_of, round_number


@dataclass(frozen=True)
class Work:
    """What every stage needs: the run, its config, and the frozen teacher."""

    config: Config
    run: Run
    teacher_hash: str

    @cached_property
    def question_hash(self) -> str:
        """How the config asks the teacher for its own answers."""
        from opd_core.prompts import load_processor, processor_hash

        processor = processor_hash(load_processor(self.config.teacher.path))
        return prediction_question(self.config, processor)

    def predictions(self) -> pl.LazyFrame:
        """The teacher's own answers to that question; none where the curriculum needs none."""
        rows = self.run.teacher_predictions()
        if not needs_predictions(self.config.focus):
            return rows.filter(pl.lit(False))
        return rows.filter(
            (pl.col("teacher_hash") == self.teacher_hash)
            & (pl.col("question_hash") == self.question_hash)
        )

    def policy(self, version: int | None = None) -> PolicyRef:
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

    def policy_at(self, stage: str, round: int | None) -> PolicyRef:
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
        return self.policy(policy_version_of(stage, round))

    def policy_of_round(self) -> PolicyRef:
        """The policy that the round to work on samples from.

        The newest committed one; or its parent while the round that committed it, killed after
        that, is not finished (evaluated, tables tagged).
        """
        current = self.run.current_policy()
        if current.version == 0 or self.run.is_finished(current.version):
            return current
        return self.run.policy(current.version - 1)


def check_folders(config: Config, name: str) -> None:
    """Raises `VideoOPDError` where the config, read from the file `name`, has no model to open or
    no place for its run."""
    for role, folder in (("student", config.student.path), ("teacher", config.teacher.path)):
        if not folder.is_dir():
            raise VideoOPDError(
                f"there is no model folder at {folder}; correct {role}.path in {name}"
            )
    check_place(config.run.path)


@contextmanager
def opened(
    config: str, overrides: Sequence[str] | None = None, *, goes_on: bool = True
) -> Iterator[Work]:
    """The run of a config, for writing, with this process as its only writer.

    The run remembers the config and the overrides that it went on with last; not those of a
    question beside its rounds, with `goes_on=False`.

    Makes the run where there is none, checks that student and teacher fit, and imports the
    annotations that are not in its tables yet. Refused before anything is computed, it leaves no
    folder behind.
    """
    loaded = load_config(config, overrides or ())
    check_folders(loaded, config)
    with (
        removed_if_refused(loaded.run.path),
        damage.told([loaded.run.path]),
        _writing(loaded) as work,
    ):
        if goes_on or config_source(work.run.path) is None:
            remember_config(work.run.path, Path(config), overrides or ())
        yield work


@contextmanager
def _writing(loaded: Config) -> Iterator[Work]:
    from opd_core.tree_model import set_threads
    from opd_core.vocabulary import check_same_vocabulary

    check_same_vocabulary(loaded.student.path, loaded.teacher.path)
    set_threads(loaded.machine.threads)
    run = Run.create(
        loaded.run.path, loaded.to_json(), loaded.hash, loaded.student.path, loaded.teacher.path
    )
    with run.exclusive("round"):
        import_annotations(run, loaded)
        with decoding_once(loaded):
            yield Work(loaded, run, run.weights_hash(loaded.teacher.path))


@contextmanager
def decoding_once(config: Config) -> Iterator[None]:
    """Meanwhile every stage of this process reads frames through the store of the config."""
    folder = config.frames_path
    if folder is None:
        yield
        return
    from opd_core.encoding import reading_through

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
        store.close()  # writes what it still holds
        kept = usage(folder)
        if is_new and (kept is None or not kept.clips):
            shutil.rmtree(folder, ignore_errors=True)
        raise
    except BaseException:
        store.close()
        raise
    store.close()


def import_annotations(run: Run, config: Config) -> tuple[int, int]:
    """Append new examples, and quarantine what is none; (examples, quarantined) that were new."""
    from opd_core.annotations import read_timelens

    examples: list[GroundingExample] = []
    rejected: list[QuarantinedItem] = []
    evaluated: set[str] = set()
    for path, split in ((config.data.eval, "eval"), (config.data.train, "train")):
        for item in read_timelens(path, split):
            if isinstance(item, QuarantinedItem):
                rejected.append(item)
            elif split == "train" and item.example_id in evaluated:
                reason = f"this annotation of {path.name} is in the eval split too"
                rejected.append(
                    QuarantinedItem(item.example_id, "import", item.video_path, reason, None)
                )
            else:
                examples.append(item)
        evaluated = {e.example_id for e in examples}
    counts = {split: sum(e.split == split for e in examples) for split in ("train", "eval")}
    for split, path in (("train", config.data.train), ("eval", config.data.eval)):
        if not counts[split]:
            first = f" (first problem: {rejected[0].reason})" if rejected else ""
            raise VideoOPDError(f"{path} holds no usable example{first}; give it at least one")
    return (
        run.append("examples", examples),
        run.append("quarantine", rejected, stage="import"),
    )
