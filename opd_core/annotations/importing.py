"""Which annotations are taken: found ones against the files they speak of.

Pure: the caller reads the annotations and has looked at the files. Nothing is repaired, but for
spans that end late where the user allows that (`Rules.clamp_seconds`); what is not taken has a
`kind`, by which reasons are counted, and a reason in a sentence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from opd_core.annotations.audio_queries import audio_word
from opd_core.annotations.control_tokens import control_fault
from opd_core.annotations.fields import BadSpanError, check_span
from opd_core.annotations.formats.found import Annotated, Found, LeftOut
from opd_core.types import Span, make_example_id
from opd_core.video.durations import TOLERANCE_SECONDS, duration_fault
from opd_core.video.probing import Probe, ProbeResult, Unusable

_ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class Decision:
    """One annotation: taken, or why not."""

    found: Found
    source: str
    video_path: str | None
    """Relative to the folder of videos; None where there is no such file."""
    probe: Probe | None
    kind: str | None
    """Of the reason, for counting; None where it was taken."""
    reason: str | None
    spans: tuple[Span, ...] = ()
    """Of one that was taken: as found, or cut to the end of the file."""
    note: str | None = None
    """What is odd about one that was taken."""

    @property
    def clamped(self) -> list[tuple[Span, Span]]:
        """(as annotated, as taken) of each span that was cut."""
        if not self.taken or not isinstance(self.found, Annotated):
            return []
        pairs = zip(self.found.spans, self.spans, strict=True)
        return [(annotated, taken) for annotated, taken in pairs if annotated != taken]

    @property
    def taken(self) -> bool:
        return self.kind is None

    def as_row(self) -> dict[str, Any]:
        """The report's line."""
        row: dict[str, Any] = {"place": self.found.place, "taken": self.taken}
        row |= {"kind": self.kind, "reason": self.reason} if not self.taken else {}
        row |= {"video": self.found.video, "video_path": self.video_path}
        if isinstance(self.found, Annotated):
            spans = self.spans if self.taken else self.found.spans
            row |= {"query": self.found.query, "spans": [list(span) for span in spans]}
        if self.clamped:
            row["clamped"] = [{"annotated": list(a), "taken": list(t)} for a, t in self.clamped]
        return row | ({"note": self.note} if self.note else {})


@dataclass(frozen=True, slots=True)
class Rules:
    source: str
    """Of annotations that name none."""
    override_source: bool = False
    skip_audio_queries: bool = False
    clamp_seconds: float = 0.0
    """A span that ends at most this long after its file is cut to the file's end."""


class _LeftOutError(Exception):
    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


def decide(
    annotations: Iterable[Found],
    paths: Mapping[str, str | None],
    probes: Mapping[str, ProbeResult],
    rules: Rules,
    why_no_file: Callable[[str], str],
) -> Iterator[Decision]:
    """A decision an annotation, in order.

    `paths`: the file that a video's name means; where it means none, `why_no_file` says why.
    `probes`: what was found in the file.
    """
    first_seen: dict[str, str] = {}
    for annotation in annotations:
        path = None if annotation.video is None else paths.get(annotation.video)
        probe = None if path is None else probes.get(path)
        usable = probe if isinstance(probe, Probe) else None
        source = rules.source
        if isinstance(annotation, Annotated) and annotation.source and not rules.override_source:
            source = annotation.source
        try:
            spans, note = _check(annotation, path, probe, rules, first_seen, why_no_file)
        except _LeftOutError as error:
            yield Decision(annotation, source, path, usable, error.kind, str(error))
        else:
            yield Decision(annotation, source, path, usable, None, None, spans, note)


def _check(
    annotation: Found,
    path: str | None,
    probe: ProbeResult | None,
    rules: Rules,
    first_seen: dict[str, str],
    why_no_file: Callable[[str], str],
) -> tuple[tuple[Span, ...], str | None]:
    """The spans that are taken, and a note. Raises `_LeftOutError`."""
    if isinstance(annotation, LeftOut):
        raise _LeftOutError("not of this format", annotation.reason)
    if fault := control_fault(annotation.query):
        raise _LeftOutError("control token", fault)
    if rules.skip_audio_queries and (word := audio_word(annotation.query)):
        raise _LeftOutError("audio query", f"the query is about sound ({word!r})")
    if path is None:
        raise _LeftOutError("no such video", why_no_file(annotation.video))
    if probe is None or isinstance(probe, Unusable):
        reason = "nobody has looked at it" if probe is None else probe.reason
        raise _LeftOutError("unusable video", f"{path}: {reason}")
    if annotation.duration and (fault := duration_fault(annotation.duration, probe.duration)):
        raise _LeftOutError("another duration", f"{path}: {fault}")
    spans = tuple(_checked(span, probe.duration, rules.clamp_seconds) for span in annotation.spans)
    example_id = make_example_id(path, annotation.query, *dict.fromkeys(spans))
    if example_id in first_seen:
        raise _LeftOutError("said twice", f"is the same annotation as {first_seen[example_id]}")
    first_seen[example_id] = annotation.place
    off = abs((annotation.duration or probe.duration) - probe.duration)
    if off <= TOLERANCE_SECONDS:  # further off, in a long video, it is told; the file's own counts
        return spans, None
    return spans, f"annotated for {annotation.duration:g} s, the file has {probe.duration:.2f} s"


def _checked(span: Span, duration: float, clamp_seconds: float) -> Span:
    late = span.end - duration
    if clamp_seconds and 0 < late <= clamp_seconds + _ROUNDING and 0 <= span.start < duration:
        return Span(span.start, duration)
    try:
        return check_span(span, duration)
    except BadSpanError as error:
        reason = str(error)
        if late > 0 and 0 <= span.start < duration:
            reason += f", {late:.2f} s too late; --clamp SECONDS would cut it to the end"
        raise _LeftOutError(error.kind, reason) from None


def timelens_rows(decisions: Iterable[Decision]) -> Iterator[dict[str, Any]]:
    """What was taken, in TimeLens-100K's form: a row a run of neighbours of one video and source.

    Beyond that form a row has `fps`, `codec` and `sha256` of the file.
    """
    taken = (d for d in decisions if d.taken)
    for (path, source), group in groupby(taken, key=lambda d: (d.video_path, d.source)):
        members = list(group)
        probe = members[0].probe
        assert probe is not None
        yield {
            "source": source,
            "video_path": path,
            "duration": probe.duration,
            "events": [_event(member) for member in members],
            "fps": probe.fps,
            "codec": probe.codec,
            "sha256": probe.sha256,
        }


def _event(decision: Decision) -> dict[str, Any]:
    assert isinstance(decision.found, Annotated)
    spans = [_plain(span) for span in dict.fromkeys(decision.spans)]
    return {"query": decision.found.query, "span": spans}


def _plain(span: Span) -> list[float]:
    return [span.start, span.end]
