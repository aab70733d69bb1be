"""What an annotation calls its video, taken apart: POSIX paths, Windows paths, URLs, bare names.

A name with a backslash, or with a drive before its first slash, is a Windows path. (On POSIX a
backslash may be part of a file's name; no data set was met that does so.)
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath, PureWindowsPath

_DRIVE = re.compile(r"/?(?=[A-Za-z]:[\\/])")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")


@dataclass(frozen=True, slots=True)
class NamedPath:
    parts: tuple[str, ...]
    """Folders and file name, without root, drive or server."""
    is_absolute: bool
    is_windows: bool

    @classmethod
    def of(cls, name: str) -> NamedPath:
        """`C:\\data\\a.mp4`, `\\\\server\\share\\a.mp4`, `sub\\a.mp4`, `/data/a.mp4`, `sub/a.mp4`,
        `file:///data/a.mp4`, `s3://bucket/a.mp4`, `a.mp4`, `a`."""
        if scheme := _SCHEME.match(name):
            name = name[scheme.end() :]
            if scheme.group(1).lower() != "file":
                name = "/" + name
        if drive := _DRIVE.match(name):
            name = name[drive.end() :]
        if drive or "\\" in name:
            windows = PureWindowsPath(name)
            parts = windows.parts[1:] if windows.anchor else windows.parts
            return cls(parts, bool(windows.anchor), True)
        posix = PurePosixPath(name)
        parts = posix.parts[1:] if posix.is_absolute() else posix.parts
        return cls(parts, posix.is_absolute(), False)
