"""Find the file that an annotation means: by path, by name, or by the id that names it.

Data sets name videos as they please: `cosmo_cap/a.mp4` (TimeLens), `AO8RW` (Charades-STA),
`v_bXdq2zI1Ms0` (ActivityNet), a path of the machine on which they were made. Only an unambiguous
answer counts: a wrong video is worse than none. `video_names.py` takes names apart.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from urllib.parse import unquote

from opd_core.annotations.video_names import NamedPath
from opd_core.types import VideoOPDError

SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".flv", ".ts", ".3gp")


class VideoFolder:
    def __init__(self, path: Path) -> None:
        if not path.is_dir():
            raise VideoOPDError(f"there is no folder of videos at {path}; correct --videos")
        self.path = path

    def find(self, name: str) -> str | None:
        """The file's path relative to the folder, `/` between its parts; None where there is none.

        A path with folders is taken as it stands, or from the folder's own name on; an absolute
        one, of another machine, by the longest end of it that is there; a bare name or id anywhere
        in the folder, if there is exactly one such file. Windows' paths are read as POSIX' are.
        """
        path = self._find(name)
        return self._find(unquote(name)) if path is None and "%" in name else path

    def _find(self, name: str) -> str | None:
        path = NamedPath.of(name)
        parts = path.parts
        if not parts or ".." in parts:
            return None
        ends = ["/".join(parts[start:]) for start in range(len(parts))]
        if not path.is_absolute:
            ends = [ends[0], *(ends[n] for n in range(1, len(parts)) if self._ends_in(parts[:n]))]
        suffixes = ("",) if name.lower().endswith(SUFFIXES) else ("", *SUFFIXES)
        candidates = (end + suffix for end in ends for suffix in suffixes)
        if existing := next((name for name in candidates if self._is_file(name)), None):
            return existing
        if len(parts) > 1 or path.is_absolute:
            return None
        named = self._by_name.get(parts[0], ())
        return named[0] if len(named) == 1 else None

    def _ends_in(self, folders: tuple[str, ...]) -> bool:
        return self.path.resolve().parts[-len(folders) :] == folders

    def why_not(self, name: str) -> str:
        """What to tell a user about a name for which `find` gives None."""
        paths = self._by_name.get(name, ())
        if len(paths) > 1:
            return f"{name!r} may be {paths[0]}, {paths[1]}, ...; name it with its folder"
        return f"the folder of videos has no file for {name!r}"

    def _is_file(self, relative: str) -> bool:
        try:
            return (self.path / relative).is_file()
        except (OSError, ValueError):  # too long, or holds a zero
            return False

    @cached_property
    def _by_name(self) -> dict[str, list[str]]:
        """Files by name and by name without suffix; made when first needed, in one walk."""
        index: dict[str, list[str]] = {}
        for relative in self._walk():
            name = relative.rpartition("/")[2]
            stem = name[: name.rindex(".")]
            for key in (name, stem):
                index.setdefault(key, []).append(relative)
        return index

    def _walk(self) -> Iterator[str]:
        for folder, _, names in os.walk(self.path):
            for name in names:
                if name.lower().endswith(SUFFIXES):
                    yield Path(folder, name).relative_to(self.path).as_posix()
