"""`videoopd import`: other people's annotations into the file that `data.train` takes.

Twice over the annotations: once for the videos they name, which are looked at once each, in
parallel; once to decide and write. So memory holds a line a video, whatever the number of
sentences. What was found in the files is kept in OUT.probes.jsonl: killed anywhere, the same
command goes on. OUT and OUT.report.jsonl appear when they are whole.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import IO

from flows.commands.probe_cache import ProbeCache
from flows.console.progress import progress, waiting
from flows.console.report import cut
from opd_core.annotations.formats.found import Format, Found
from opd_core.annotations.formats.readers import FORMATS
from opd_core.annotations.importing import Decision, Rules, decide, timelens_rows
from opd_core.annotations.video_folder import VideoFolder
from opd_core.types import VideoOPDError
from opd_core.video.presence import MOST, is_readable, refuse_missing_folder
from opd_core.video.probing import ProbeResult, probe_files
from storage.files import disk_troubles, removed_if_refused

PROBE_SECONDS = 60.0


@dataclass(frozen=True)
class ImportOptions:
    """What `videoopd import` is asked."""

    format: str
    files: Sequence[Path]
    videos: Path
    out: Path
    source: str | None = None
    jobs: int | None = None
    """Videos looked at at once; None: as many as there are cores."""
    skip_audio_queries: bool = False
    probe_seconds: float = PROBE_SECONDS
    """A video that takes longer is left out."""
    clamp_seconds: float = 0.0
    """Spans that end at most this long after their file are cut to its end."""
    allow_missing: bool = False
    """Go on where most of the videos that are named have no file."""


@dataclass
class ImportSummary:
    """What was taken and what was left out, counted while it is decided."""

    out: Path
    videos: Path
    taken: int = 0
    taken_videos: set[str] = field(default_factory=set)
    several_spans: int = 0
    clamped: int = 0
    first_clamped: str = ""
    latest_end: float = 0.0
    """Seconds: of all spans taken."""
    shortest: float = math.inf
    """Seconds: the length of the shortest video of these."""
    noted: int = 0
    first_note: str = ""
    left_out: Counter[str] = field(default_factory=Counter)
    """By kind of reason."""
    first: dict[str, str] = field(default_factory=dict)
    """Kind -> its first `place: reason`."""
    looked_at: int = 0
    known_before: int = 0

    def count(self, decision: Decision) -> None:
        place = decision.found.place
        if decision.kind is not None:
            self.left_out[decision.kind] += 1
            self.first.setdefault(decision.kind, f"{place}: {decision.reason}")
            return
        self.taken += 1
        self.taken_videos.add(decision.video_path or "")
        self.several_spans += len(decision.spans) > 1
        self.latest_end = max(self.latest_end, *(span.end for span in decision.spans))
        if decision.probe is not None:
            self.shortest = min(self.shortest, decision.probe.duration)
        for annotated, taken in decision.clamped:
            self.clamped += 1
            cut = f"{place}: {annotated.end:g} s to {taken.end:g} s"
            self.first_clamped = self.first_clamped or cut
        if decision.note:
            self.noted += 1
            self.first_note = self.first_note or f"{place}: {decision.note}"

    @property
    def may_be_fractions(self) -> bool:
        """Whether no span of several goes beyond the first second of videos of many."""
        return self.taken >= 3 and self.latest_end <= 1.0 and self.shortest >= 5.0


def report_path(out: Path) -> Path:
    """Name the file with a decision a line, beside the file that is made."""
    return out.with_name(f"{out.name}.report.jsonl")


def cache_path(out: Path) -> Path:
    """Name the file of what was seen in the videos, beside the file that is made."""
    return out.with_name(f"{out.name}.probes.jsonl")


def import_files(options: ImportOptions) -> ImportSummary:
    """Read, look, decide, write. Raises `VideoOPDError` where nothing could be taken."""
    out = options.out
    if out.is_dir():
        raise VideoOPDError(f"{out} is a folder; give --out the name of a file such as train.jsonl")
    if out.resolve() in {path.resolve() for path in options.files}:
        raise VideoOPDError(f"--out {out} is one of the files to read; give it another name")
    folder = VideoFolder(options.videos)
    form = FORMATS[options.format]
    summary = ImportSummary(out, options.videos)
    with waiting("reading annotations"):
        paths = _paths(_annotations(form, options.files), folder)
    with removed_if_refused(out.parent) as made, disk_troubles(out.parent):
        if not options.allow_missing:
            _refuse_missing(options, folder, paths)
        probes = _probe(options, folder, paths, summary)
        if not options.allow_missing:  # the folder may have gone away while it was looked at
            _refuse_missing(options, folder, paths)
        rules = Rules(
            options.source or options.format,
            options.source is not None,
            options.skip_audio_queries,
            options.clamp_seconds,
        )
        with _published(out) as rows, _published(report_path(out)) as report:
            annotations = _annotations(form, options.files)
            decisions = decide(annotations, paths, probes, rules, folder.why_not)
            for row in timelens_rows(_reported(decisions, report, summary)):
                _write(rows, row)
        if not summary.taken:
            out.unlink()
            see = "" if made else f", and see {report_path(out)}"
            raise VideoOPDError(
                f"nothing could be taken from {', '.join(str(f) for f in options.files)} as "
                f"{options.format} ({_why_nothing(summary)}); correct FORMAT or --videos{see}"
            )
    return summary


def _why_nothing(summary: ImportSummary) -> str:
    """Tell the kinds of reason, most frequent first, each with its first one."""
    kinds = summary.left_out.most_common(3)
    told = [f"{count:,} {kind}, the first {cut(summary.first[kind], 140)}" for kind, count in kinds]
    return "; ".join(told) or "it holds no annotation"


def _annotations(form: Format, files: Iterable[Path]) -> Iterator[Found]:
    return chain.from_iterable(form.read(file) for file in files)


def _paths(annotations: Iterable[Found], folder: VideoFolder) -> dict[str, str | None]:
    """Find the file of every video that is named."""
    paths: dict[str, str | None] = {}
    for annotation in annotations:
        if annotation.video is not None and annotation.video not in paths:
            paths[annotation.video] = folder.find(annotation.video)
    return paths


def _refuse_missing(
    options: ImportOptions, folder: VideoFolder, paths: dict[str, str | None]
) -> None:
    """Refuse where most videos are missing: the folder is wrong then, not the annotations."""
    refuse_missing_folder(folder.path, "--videos")
    readable = {path: is_readable(folder.path / path) for path in paths.values() if path}
    missing = [name for name, path in paths.items() if path is None or not readable[path]]
    if MOST * len(paths) < len(missing) < len(paths):  # of none at all, nothing can be taken
        raise VideoOPDError(
            f"{len(missing):,} of the {len(paths):,} videos that are named have no file in "
            f"{folder.path} ({folder.why_not(missing[0])}); mount it, correct --videos or "
            "FORMAT, or give --allow-missing to take the annotations of the others"
        )


def _probe(
    options: ImportOptions,
    folder: VideoFolder,
    paths: dict[str, str | None],
    summary: ImportSummary,
) -> dict[str, ProbeResult]:
    cache = ProbeCache(cache_path(options.out), folder.path)
    wanted = dict.fromkeys(path for path in paths.values() if path is not None)
    todo = [path for path in wanted if path not in cache.known]
    summary.looked_at, summary.known_before = len(todo), len(wanted) - len(todo)
    if todo:
        jobs = options.jobs or len(os.sched_getaffinity(0))
        results = probe_files(folder.path, todo, jobs, options.probe_seconds)
        with progress("videos", len(wanted)) as advance, cache.appending(), closing(results):
            advance(summary.known_before)
            for name, result in results:
                cache.add(name, result)
                advance(1)
    return cache.known


def _reported(
    decisions: Iterable[Decision], report: IO[str], summary: ImportSummary
) -> Iterator[Decision]:
    for decision in decisions:
        summary.count(decision)
        _write(report, decision.as_row())
        yield decision


def _write(file: IO[str], row: dict[str, object]) -> None:
    file.write(json.dumps(row, ensure_ascii=False) + "\n")


@contextmanager
def _published(path: Path) -> Iterator[IO[str]]:
    """Open a file that is there under its name when it is whole, and not before."""
    aside = path.with_name(f".{path.name}.part")
    with aside.open("w", encoding="utf-8", errors="backslashreplace") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def print_summary(summary: ImportSummary) -> None:
    """Print what came of an import, with the first case of each kind."""
    videos = len(summary.taken_videos)
    left_out = sum(summary.left_out.values())
    print(f"taken     {summary.taken:>7,} annotations of {videos:,} videos -> {summary.out}")
    print(f"left out  {left_out:>7,} annotations")
    for kind, count in summary.left_out.most_common():
        print(f"          {count:>7,} {kind}, the first {cut(summary.first[kind], 140)}")
    if summary.several_spans:
        print(
            f"note      {summary.several_spans:>7,} sentences have several spans; all are kept in "
            "the file, and a run counts the one that an answer fits best"
        )
    if summary.clamped:
        print(f"clamped   {summary.clamped:>7,} spans, the first {summary.first_clamped}")
    if summary.may_be_fractions:
        print(
            f"careful           all spans end by {summary.latest_end:g} s, in videos of "
            f"{summary.shortest:.0f} s and more: if they are fractions, write them in seconds"
        )
    if summary.noted:
        print(
            f"note      {summary.noted:>7,} with another duration, the first {summary.first_note}"
        )
    print(f"looked at {summary.looked_at:>7,} videos ({summary.known_before:,} were known before)")
    print(f"why       {report_path(summary.out)}")
    print(f'use       data.train = "{summary.out}" and data.videos = "{summary.videos}"')
