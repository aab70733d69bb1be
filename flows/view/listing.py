"""The rollouts of a run in the order that somebody asked for, quick also where there are a million.

What is kept of a run (`storage/asking/scalars.py`) is made when it is first asked for and made anew
when its tables have changed, but not so often that it slows the run: making it takes a fiftieth of
the time at most. Kept beside it are the last orders, four bytes a rollout, so that pages, the next
rollout and its neighbours are found without asking again.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from flows.view.apart import Apart, Question
from flows.view.memory import give_back
from flows.view.rollouts import Asked
from storage.asking.scalars import ROW, TABLES_OF_VIEW, Scalars, scalars, standing_in

if TYPE_CHECKING:
    import polars as pl

    from storage.runs.run import Run

REST = 50.0
"""As many times as long as making it took, it stays as it is."""
FEW, REST_OF_FEW = 5_000, 2.5
"""So few rollouts are made anew in a twentieth of a second, and stay for seconds: what the first of
a process took was spent on imports."""
LISTINGS = 3
"""Runs and rounds that are kept."""
ORDERS = 8
"""Orders, and answers to `where`, that are kept of a listing."""
_BY_ID = "place_by_id"
Made = TypeVar("Made")


@dataclass
class Listing:
    """The rollouts of a run as they were at one moment."""

    kept: Scalars
    versions: Mapping[str, int]
    seconds: float
    """That it took to make."""
    made_at: float = field(default_factory=time.monotonic)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _orders: OrderedDict[Hashable, pl.Series] = field(default_factory=OrderedDict)
    _true: OrderedDict[Hashable, pl.Series] = field(default_factory=OrderedDict)
    _by_id: pl.Series | None = None
    _file: Path | None = None

    @property
    def run(self) -> Run:
        """Frozen: with its tables as they were."""
        return self.kept.run

    @property
    def state(self) -> str:
        """Other for another list."""
        return f"{self.versions} {self.made_at}"

    @property
    def count(self) -> int:
        return self.kept.frame.height

    def order(self, asked: Asked) -> pl.Series:
        """Rows of the view that are asked for, in the order asked for, whatever the page.

        Raises `VideoOPDError` for a `where` that cannot be answered.
        """
        return _remembered(self._orders, asked.but(), self._lock, lambda: self._ordered(asked))

    def values(self, asked: Asked, column: str) -> pl.Series:
        """A kept column of what is asked for, in its order."""
        return self.kept.frame.get_column(column).gather(self.order(asked))

    def place(self, asked: Asked, rollout_id: str) -> int | None:
        """At which place of the order a rollout is, from 0; None where it is not in it."""
        row = self.kept.row_of(rollout_id)
        return None if row is None else self.order(asked).index_of(row)

    def ids(self, rows: pl.Series) -> list[str]:
        """The rollout ids of rows of the view."""
        return self.kept.read(rows, ("rollout_id",)).get_column("rollout_id").to_list()

    def _ordered(self, asked: Asked) -> pl.Series:
        from storage.asking.query import query

        where = " AND ".join(asked.conditions())
        sql = f"SELECT {ROW} FROM trajectories{f' WHERE {where}' if where else ''}"
        if asked.order:
            sql += f" ORDER BY {asked.order}, {_BY_ID}"
        frame = standing_in(self.kept, sql)
        if asked.order:
            frame = frame.with_columns(self._places_by_id())
        if asked.where is not None:
            frame = frame.filter(self._where(asked.where))
        return query(self.run, sql, trajectories=frame).to_series()

    def _places_by_id(self) -> pl.Series:
        """What orders rollouts that are alike as `ORDER BY rollout_id` does, without its texts."""
        with self._lock:
            if self._by_id is None:
                self._by_id = self.kept.places_by_id().alias(_BY_ID)
            return self._by_id

    def _where(self, where: str) -> pl.Series:
        return _remembered(self._true, where, self._lock, lambda: self._asked_apart(where))

    def _asked_apart(self, where: str) -> pl.Series:
        import polars as pl

        question = Question(
            self.run.path, self.run.round, self.run.table_versions(), where, self._kept_in_a_file()
        )
        return pl.Series(_APART.rows(question))

    def _kept_in_a_file(self) -> Path:
        with self._lock:
            if self._file is None:
                folder = Path(tempfile.mkdtemp(prefix="videoopd-view-"))
                weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
                self._file = folder / "kept.arrow"
                self.kept.frame.write_ipc(self._file, compression="uncompressed")
            return self._file


class _Listings:
    """Of the runs and rounds that were asked for last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[Hashable, Listing] = OrderedDict()
        self._making: dict[Hashable, threading.Lock] = {}

    def of(self, run: Run) -> Listing:
        key = (run.path, run.round)
        with self._lock:
            making = self._making.setdefault(key, threading.Lock())
        with making:  # two who ask at once get the same one
            known = self._known.get(key)
            if known is None or self._is_old(known, run):
                known = None  # before the next one is made: both would be in memory
                with self._lock:
                    self._known.pop(key, None)
                    while len(self._known) >= LISTINGS:
                        self._known.popitem(last=False)
                known = _made(run)
            with self._lock:
                self._known[key] = known
                self._known.move_to_end(key)
            return known

    def _is_old(self, known: Listing, run: Run) -> bool:
        rest = REST_OF_FEW if known.count <= FEW else REST * known.seconds
        if time.monotonic() - known.made_at < rest:
            return False
        versions = run.table_versions()
        return any(known.versions[name] != versions[name] for name in TABLES_OF_VIEW)


_LISTINGS = _Listings()
_APART = Apart()


def listing(run: Run) -> Listing:
    """The rollouts of a run as it is now, or was a moment ago."""
    return _LISTINGS.of(run)


def neighbours(run: Run, asked: Asked, rollout_id: str) -> tuple[str | None, str | None]:
    """The rollouts before and after one in a list that was asked for; None at its ends.

    Of a rollout that is not in the list, both are None.
    """
    listed = listing(run)
    place = listed.place(asked, rollout_id)
    if place is None:
        return None, None
    order = listed.order(asked)
    first, last = max(0, place - 1), min(len(order), place + 2)
    ids = listed.ids(order[first:last])
    before = ids[0] if place > 0 else None
    return before, ids[-1] if place + 1 < len(order) else None


def _made(run: Run) -> Listing:
    began = time.process_time()
    kept = scalars(run)
    give_back()
    return Listing(kept, kept.run.table_versions(), time.process_time() - began)


def _remembered(
    known: OrderedDict[Hashable, Made], key: Hashable, lock: threading.Lock,
    make: Callable[[], Made],
) -> Made:  # fmt: skip
    with lock:
        if key in known:
            known.move_to_end(key)
            return known[key]
    made = make()
    with lock:
        known[key] = made
        while len(known) > ORDERS:
            known.popitem(last=False)
    return made
