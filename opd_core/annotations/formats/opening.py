"""Open an annotation file as UTF-8 bytes, whether it is gzipped or UTF-16, as Excel saves text."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeVar

from opd_core.annotations.fields import BadAnnotationError
from opd_core.annotations.formats.found import LeftOut
from opd_core.types import VideoOPDError

_GZIP, _ZIP = b"\x1f\x8b\x08", b"PK\x03\x04"
_UTF16 = {b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be"}

T = TypeVar("T")


def check_readable(path: Path, fix: str) -> None:
    """Raises `VideoOPDError`, with the fix, where the file cannot be opened."""
    with _raw(path, fix):
        pass


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The file, for reading bytes.

    Raises `VideoOPDError` where it cannot be opened, `BadAnnotationError` where it is packed in a
    way that is not read.
    """
    with _raw(path, "correct its path") as file:
        yield _as_utf8(_unpacked(file))


def reading(path: Path, read: Callable[[BinaryIO], Iterator[T]]) -> Iterator[T | LeftOut]:
    """What `read` finds in the opened file, or the reason why that cannot be."""
    with _raw(path, "correct its path") as file:
        try:
            text = _as_utf8(_unpacked(file))
        except BadAnnotationError as error:
            yield LeftOut(f"{path.name}:1", None, str(error))
            return
        yield from read(text)


@contextmanager
def _raw(path: Path, fix: str) -> Iterator[BinaryIO]:
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise VideoOPDError(f"there is no annotation file {path}; {fix}") from None
    except OSError as error:
        raise VideoOPDError(f"{path} cannot be read ({error.strerror}); {fix}") from None
    with file:
        yield file


def _unpacked(file: BinaryIO) -> BinaryIO:
    magic = file.read(4)
    file.seek(0)
    if magic == _ZIP:
        raise BadAnnotationError(
            "the file is a ZIP archive or Excel's; unpack it, or save the sheet as CSV"
        )
    if magic[:3] != _GZIP:
        return file
    try:
        return io.BytesIO(gzip.decompress(file.read()))
    except (OSError, EOFError, zlib.error):
        raise BadAnnotationError("the file is damaged gzip; get it again") from None


def _as_utf8(file: BinaryIO) -> BinaryIO:
    head = file.read(4)
    file.seek(0)
    encoding = _UTF16.get(head[:2])
    if encoding is None or 0 not in head[2:]:  # annotations begin with a character of ASCII
        return file
    text = file.read()[2:].decode(encoding, errors="replace")
    return io.BytesIO(text.encode(errors="replace"))
