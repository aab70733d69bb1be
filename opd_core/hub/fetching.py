"""Brings a model from the hub into its cache: what a checkpoint needs, and nothing else.

The hub is asked first, once and with a short patience, so that whatever is wrong (no network, no
such name, a licence that was not accepted, weights in a format that is not read, no room) is one
sentence within seconds, before the first byte of weights.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opd_core.hub.cache import base_of, cache_folder, missing_files, snapshot
from opd_core.hub.name import HubModel
from opd_core.types import VideoOPDError

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo

Advance = Callable[[int], None]
Progress = Callable[[str, int], AbstractContextManager[Advance]]
"""What is going on and its total -> what is told how many of those are newly done."""

FILES = ("*.safetensors", "*.json", "*.jinja", "merges.txt", "README.md", "LICENSE*")
"""Weights, configs, tokenizer, processor and chat template; the card says the licence."""
IN_FOLDERS = "*/*"
"""Other formats and examples."""
ANSWER_SECONDS = 3.0
"""In which the hub has to answer the first question."""
_MB = 1_000_000


def whole_snapshot(model: HubModel, progress: Progress) -> Path:
    """The folder of a model in the hub's cache; what is missing of it, or of the base that an
    adapter stands on, is fetched.

    Where all of it is there, the network is not asked. Raises `VideoOPDError` where that cannot be.
    """
    folder = _cached_or_fetched(model, progress)
    base = base_of(folder)
    if base is not None and not (folder / str(base)).is_dir():
        _cached_or_fetched(base, progress)  # one that is an adapter too is refused where it is used
    return folder


def _cached_or_fetched(model: HubModel, progress: Progress) -> Path:
    folder = snapshot(model)
    return _fetched(model, progress) if folder is None or missing_files(folder) else folder


def _fetched(model: HubModel, progress: Progress) -> Path:
    from huggingface_hub import snapshot_download

    with _told(model):
        info = _asked(model)
    _refuse_other_formats(model, info)
    sizes = {
        file.rfilename: file.size or 0 for file in info.siblings or () if _is_wanted(file.rfilename)
    }
    _refuse_full_disk(model, sum(sizes.values()))
    total = -(-sum(sizes.values()) // _MB)
    with _told(model), progress(f"{model} (MB)", total) as advance:
        # Without a commit the cache also remembers what the branch or tag is at.
        folder = Path(
            snapshot_download(
                model.repo,
                revision=model.revision,
                allow_patterns=list(FILES),
                ignore_patterns=[IN_FOLDERS],
                tqdm_class=_counting(advance),
            )
        )
    if missing := missing_files(folder):
        raise VideoOPDError(
            f"{model} has no {missing[0]} on the hub, and is no checkpoint that can be used; name "
            "another model, or give a folder"
        )
    return folder


def _asked(model: HubModel) -> ModelInfo:
    from huggingface_hub import HfApi

    return HfApi().model_info(
        model.repo, revision=model.revision, timeout=ANSWER_SECONDS, files_metadata=True
    )


def _is_wanted(name: str) -> bool:
    return not fnmatch(name, IN_FOLDERS) and any(fnmatch(name, kind) for kind in FILES)


def _refuse_other_formats(model: HubModel, info: ModelInfo) -> None:
    names = [file.rfilename for file in info.siblings or ()]
    if not any(_is_wanted(name) and name.endswith(".safetensors") for name in names):
        older = [name for name in names if name.endswith((".bin", ".pth", ".pt", ".ckpt", ".gguf"))]
        raise VideoOPDError(
            f"{model} has no *.safetensors on the hub"
            + (f", its weights are in {older[0]}, a format that is not read" if older else "")
            + "; name a model that has them, or load it with transformers and save it with "
            "save_pretrained, and give that folder"
        )


def _refuse_full_disk(model: HubModel, size: int) -> None:
    """What is there already of it is not counted: then it is fetched, and the disk says."""
    place = cache_folder()
    known = place / model.cached_as / "blobs"
    there = sum(f.stat().st_size for f in known.iterdir()) if known.is_dir() else 0
    free = shutil.disk_usage(next(p for p in (place, *place.parents) if p.is_dir())).free
    if size - there > free:
        raise VideoOPDError(
            f"{model} takes {size / 1e9:.1f} GB, and {place} has {free / 1e9:.1f} GB left; make "
            "room, or set HF_HOME to a folder on another disk"
        )


def _counting(advance: Advance) -> Any:
    """A progress bar of huggingface_hub that shows nothing and tells how many MB came."""
    from huggingface_hub.utils.tqdm import tqdm

    class Counting(tqdm):
        def __init__(self, *args: Any, **settings: Any) -> None:
            self._counts = settings.get("name") == "huggingface_hub.snapshot_download"
            self._bytes = 0
            super().__init__(*args, **(settings | {"disable": True}))  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> None:
            if self._counts:
                before, self._bytes = self._bytes // _MB, self._bytes + int(n or 0)
                advance(self._bytes // _MB - before)

    return Counting


@contextmanager
def _told(model: HubModel) -> Iterator[None]:
    """What huggingface_hub raises, as one sentence with the fix."""
    from huggingface_hub import errors

    # Its bases are what its HTTP client raises, whichever that is, and OSError.
    lost: tuple[Any, ...] = errors.HfHubHTTPError.__bases__
    try:
        yield
    except errors.GatedRepoError:
        raise VideoOPDError(
            f"{model} is gated: accept its terms at https://huggingface.co/{model.repo}, and log "
            "in here with `hf auth login`"
        ) from None
    except errors.RevisionNotFoundError:
        raise VideoOPDError(
            f"{model.repo} has no revision {model.revision} on the hub; name a branch, a tag or a "
            "commit that it has"
        ) from None
    except errors.RepositoryNotFoundError:
        raise VideoOPDError(
            f"the hub has no model {model.repo}, or it is private; correct the name, or log in "
            "with `hf auth login`"
        ) from None
    except errors.OfflineModeIsEnabled:
        raise unreachable(model, "HF_HUB_OFFLINE is set; unset it") from None
    except lost as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise unreachable(model, f"the hub cannot be asked ({lines[0]}); try again") from None


def unreachable(model: HubModel, because: str) -> VideoOPDError:
    """What is not in the cache and cannot be fetched, and what to do."""
    there = snapshot(model)
    missing = [] if there is None else missing_files(there)
    more = f" and {len(missing) - 1} more files" if len(missing) > 1 else ""
    has = f"lacks {missing[0]}{more} of {model}" if missing else f"does not have {model}"
    return VideoOPDError(
        f"the hub's cache {cache_folder()} {has}, and {because}, bring it there with "
        f"`{model.download_command()}`, or give a folder"
    )
