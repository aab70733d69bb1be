"""What a folder of weights is: a hash over content that ignores how it is stored.

The same tensors in one file or in forty, saved in any order, have the same hash. Read by hand
(a safetensors file is a JSON header and raw bytes), so that no torch is needed, and in threads,
since hashlib lets go of the interpreter lock: 16 GB take seconds, not a minute.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import struct
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from opd_core.adapter_folder import adapter_config, is_adapter, refuse_gone
from opd_core.types import VideoOPDError
from storage.files import write_json

_ADAPTER_KEYS = (
    "peft_type", "r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern",
    "target_modules", "modules_to_save", "layers_to_transform", "fan_in_fan_out", "bias",
)  # fmt: skip
_EXPONENTS: dict[str, tuple[str, int]] = {
    "F64": ("<u8", 0x7FF0000000000000),
    "F32": ("<u4", 0x7F800000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
}
"""dtype of safetensors -> as an integer, the bits of its exponent."""
_AT_ONCE = 1 << 22
"""Numbers that are looked at together; it bounds the memory that takes."""


Stats = dict[str, list[int]]
"""File name -> size, modification time, inode change time."""


class FolderCache:
    """Hashes of folders whose files have not been touched since, in one JSON file.

    A file counts as untouched when size, modification time and inode change time are the same.
    `stats` says which files of a folder the hash is of.
    """

    def __init__(self, path: Path, stats: Callable[[Path], Stats]) -> None:
        self.path, self._stats = path, stats

    def get(self, folder: Path) -> str | None:
        """The hash of `folder`, or None when it must be computed."""
        entry = self._content().get(str(folder.resolve()))
        return entry["hash"] if entry and entry["files"] == self._stats(folder) else None

    def known(self, folder: Path, compute: Callable[[], str]) -> str:
        """The hash of `folder`, computed where it must be."""
        digest = self.get(folder)
        if digest is None:
            files = self._stats(folder)  # before reading, so that a change meanwhile is noticed
            digest = compute()
            self.put(folder, digest, files)
        return digest

    def put(self, folder: Path, digest: str, files: Stats) -> None:
        content = self._content()
        content[str(folder.resolve())] = {"hash": digest, "files": files}
        self._write(content)

    def moved(self, old: Path, new: Path) -> None:
        """Keep a folder's hash after a rename, which leaves the files as they were."""
        content = self._content()
        entry = content.pop(str(old.resolve()), None)
        if entry:
            content[str(new.resolve())] = entry
            self._write(content)

    def _write(self, content: dict[str, Any]) -> None:
        content = {folder: entry for folder, entry in content.items() if Path(folder).is_dir()}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.path, content)
        except OSError:
            pass  # a run on a read-only disk can be read too; the hash is computed again

    def _content(self) -> dict[str, Any]:
        try:
            content = json.loads(self.path.read_text())
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}


class WeightsCache(FolderCache):
    """Hashes of the tensors in folders."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, _stats)


def weights_hash(folder: Path, base: Path | None = None, cache: WeightsCache | None = None) -> str:
    """sha256 (hex) over the tensors of all `*.safetensors` in `folder`: name, dtype, shape, bytes.

    For a PEFT adapter, what its config says and the hash of its base are mixed in: of the base that
    adapter_config.json names, which is the one that gets loaded, or of `base` where that is gone.
    Raises `VideoOPDError` without weights, and for weights that are no numbers: each byte passes by
    here once, before anything is paid for.
    """
    own = cache.known(folder, lambda: _tensors_hash(folder)) if cache else _tensors_hash(folder)
    if not is_adapter(folder):
        return own
    config, named = adapter_config(folder)
    if named.is_dir() or base is None:
        base = named
    refuse_gone(folder, base)
    settings = {key: _sorted(config[key]) for key in _ADAPTER_KEYS if config.get(key) is not None}
    parts = [own, json.dumps(settings, sort_keys=True), weights_hash(base, cache=cache)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _tensors_hash(folder: Path) -> str:
    lines: dict[str, str] = {}
    for path in _weight_files(folder):
        for name, line in _hash_file(path).items():
            if name in lines:
                raise VideoOPDError(f"{folder} has tensor {name} twice; remove the stale file")
            lines[name] = line
    return hashlib.sha256("".join(lines[name] for name in sorted(lines)).encode()).hexdigest()


def _hash_file(path: Path) -> Mapping[str, str]:
    """One line a tensor: name, dtype, shape, sha256 of its bytes."""
    try:
        with path.open("rb") as file:
            (header_length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(header_length))
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        header.pop("__metadata__", None)
        data = data[8 + header_length :]
        for entry in header.values():
            begin, end = entry["data_offsets"]
            if not 0 <= begin <= end <= len(data):
                raise ValueError("it ends too early")

        def line(name: str) -> str:
            entry = header[name]
            begin, end = entry["data_offsets"]
            if not _is_finite(data[begin:end], entry["dtype"]):
                raise VideoOPDError(
                    f"{path} has weights that are NaN or infinite, {name} among them; restore it "
                    "from a copy that was saved whole"
                )
            digest = hashlib.sha256(data[begin:end]).hexdigest()
            return f"{json.dumps(name)} {entry['dtype']} {entry['shape']} {digest}\n"

        with ThreadPoolExecutor() as threads:
            return dict(zip(header, threads.map(line, header), strict=True))
    except (ValueError, struct.error, KeyError, TypeError, AttributeError) as error:
        raise VideoOPDError(
            f"{path} is not a whole safetensors file ({error}); copy or download it again"
        ) from None


def _is_finite(values: memoryview, dtype: str) -> bool:
    """Whether a tensor's bytes are: an exponent of ones alone is an infinity or NaN (IEEE 754,
    bfloat16)."""
    if dtype not in _EXPONENTS:
        return True
    import numpy as np

    kind, bits = _EXPONENTS[dtype]
    numbers, exponent = np.frombuffer(values, kind), np.dtype(kind).type(bits)
    parts = (numbers[at : at + _AT_ONCE] for at in range(0, len(numbers), _AT_ONCE))
    return not any(((part & exponent) == exponent).any() for part in parts)


def _weight_files(folder: Path) -> list[Path]:
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise VideoOPDError(
            f"{folder} holds no *.safetensors; give the folder of a Hugging Face checkpoint saved"
            " as safetensors"
        )
    return paths


def _stats(folder: Path) -> Stats:
    return stats_of(_weight_files(folder))


def stats_of(files: Iterable[Path]) -> Stats:
    stats = {path.name: path.stat() for path in files}
    return {name: [s.st_size, s.st_mtime_ns, s.st_ctime_ns] for name, s in stats.items()}


def _sorted(value: Any) -> Any:
    """PEFT writes sets as lists in any order."""
    return sorted(value, key=str) if isinstance(value, list) else value
