"""What a folder's processor is, as its hash, without opening it when nothing has touched it since.

To open one takes transformers and torch, seconds before anything is done; a stage asks for its hash
to know which of the teacher's answers are to its question, also when nothing is left to do.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from storage.hashes import FolderCache, Stats, stats_of

_LIBRARIES = ("transformers", "tokenizers")
"""They have their part in how a processor describes itself."""
_WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".gguf"}


def processor_hash_of(folder: Path, run: Path) -> str:
    """Hash of `opd_core.prompts.encoder.processor_hash`, remembered in the folder of the run."""

    def compute() -> str:
        from opd_core.prompts.encoder import load_processor, processor_hash

        return processor_hash(load_processor(folder))

    return FolderCache(run / ".cache" / "processors.json", _stats).known(folder, compute)


def _stats(folder: Path) -> Stats:
    if not folder.is_dir():
        return {}
    files = [p for p in sorted(folder.iterdir()) if p.is_file() and p.suffix not in _WEIGHTS]
    return stats_of(files) | {_library(name): [] for name in _LIBRARIES}


def _library(name: str) -> str:
    return f"{name} {version(name)}"
