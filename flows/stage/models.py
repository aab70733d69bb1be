"""Where the models of a config are: folders, or names on the hub, which become folders here."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

from flows.console.progress import progress
from opd_core.config.load import Config
from opd_core.hub.name import HubModel, cached_model, hub_model
from opd_core.types import VideoOPDError
from storage.runs import run_folder


def with_folders(config: Config, name: str) -> Config:
    """The config, read from the file `name`, with the folders of its student and teacher.

    A name on the hub means the commit that it meant when the run was begun, and now the one that
    the cache knows, or else the hub. What the cache lacks is fetched, with a progress bar. Raises
    `VideoOPDError` for a name of nothing, and for the run's own student at another commit.
    """
    folders: dict[str, Path] = {}
    for role, path in config.model_paths().items():
        model = _named(path)
        if model is None:
            continue
        if commit := run_folder.hub_commits(config.run.path).get(str(path)):
            _say_where_it_is_by_now(config.run.path, model, commit)
            model = replace(model, revision=commit)
        if role == "student":
            _refuse_another_commit(config.run.path, model)
        try:
            folders[role] = folder_of(model)
        except VideoOPDError as error:
            nothing = Path(name).resolve().parent / path
            raise VideoOPDError(
                f"{role}.path in {name} is {str(path)!r}: there is no folder {nothing}, and {error}"
            ) from None
        if role == "student":
            _refuse_another_commit(config.run.path, cached_model(folders[role]))
    return config.with_model_paths(folders)


def folder_of(model: HubModel) -> Path:
    """The folder of a model in the hub's cache; what is missing of it is fetched."""
    from opd_core.hub.fetching import whole_snapshot

    return whole_snapshot(model, progress)


def remember_commits(written: Config, located: Config) -> None:
    """Let the run of a config stay at the commits that the names in it were found to mean."""
    commits: dict[str, str] = {}
    found = located.model_paths()
    for role, path in written.model_paths().items():
        model = cached_model(found[role])
        if _named(path) is not None and model is not None:
            commits[str(path)] = model.revision
    run_folder.remember_hub_commits(located.run.path, commits)


def _named(path: Path) -> HubModel | None:
    """In a loaded config a name is relative, and a folder is not."""
    return None if path.is_absolute() else hub_model(path)


def _refuse_another_commit(run: Path, model: HubModel | None) -> None:
    if model is None or model.commit is None or not (run / run_folder.RUN_FILE).exists():
        return
    began = hub_model(run_folder.read(run)["student"].get("hub", ""))
    if began is not None and began.repo == model.repo and began != model:
        raise VideoOPDError(
            f"run {run} began with {began}, and student.path is now {model}; set student.path = "
            f'"{began}", or start a new run in another folder'
        )


def _say_where_it_is_by_now(run: Path, model: HubModel, commit: str) -> None:
    from opd_core.hub.cache import snapshot

    newest = snapshot(model)
    if newest is not None and newest.name != commit:
        warnings.warn(
            f"run {run} goes on with {replace(model, revision=commit)}, at which it began; "
            f"{model.revision} is at {newest.name} by now, and a new run would take that",
            RuntimeWarning,
            stacklevel=1,  # said once a process, wherever it is found
        )
