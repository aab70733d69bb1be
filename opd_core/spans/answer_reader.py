"""The span that a person reads in an answer.

Models write spans in many forms: `3.0 - 7.5 seconds`, `00:03 --> 00:07`, `start: 3.0s, end: 7.5s`,
`between 1 minute 5 seconds and 1 minute 10 seconds`, `[[3.0, 7.5], [12.0, 15.0]]`. What stands
between two times says whether they are a span. The first span of the answer counts, or the one that
follows words which announce it ("the event happens in"). Numbers that count something else (frames,
people, ordinals, percent) are no times, and a malformed number is none either.

An answer whose span ends before it begins has none: it is not searched for a better one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from opd_core.spans.answer_tokens import CONJUNCTIONS, Token, plain, tokens
from opd_core.spans.answer_words import MEASURED, NUMBERED, PROSE, RECORDINGS, THINGS
from opd_core.types import Span

THOUGHT, THOUGHT_ENDS = "<think>", "</think>"
_OPENED = re.compile(r"<think(?:ing)?>", re.IGNORECASE)
_CLOSED = re.compile(r"</think(?:ing)?>", re.IGNORECASE)
_ANNOUNCED = re.compile(
    r"(?:final answer|\banswer\s?(?:is|:)|event (?:happens|occurs|takes place|is))[^.!?\n]{0,60}"
)
_OF_THE_WHOLE = re.compile(
    r"\b(?:video|movie|film|recording|footage|clip) (?:s )?(?:duration|length|lasts)\b"
    r"|\b(?:duration|length) of (?:(?:the|this|whole|entire|full) )*"
    r"(?:video|movie|film|recording|footage|clip)\b"
)
_WHOLE_RUNS = re.compile(
    r"\b(?:video|movie|film|recording|footage) (?:spans|covers|runs|ranges)(?: from| between)?$"
)
_WORDS_BETWEEN = 40
"""Tokens that may stand between a start and an end which are named as such."""


def after_thoughts(text: str) -> str:
    """What stands after the last `</think>`, up to a thought that was cut off."""
    return _OPENED.split(_CLOSED.split(text)[-1], maxsplit=1)[0]


def parse_span(text: str) -> Span | None:
    """The span that an answer tells, in seconds, or None."""
    text = after_thoughts(text)
    pairs = list(_pairs(tokens(text)))
    if not pairs:
        return None
    chosen = _announced(text, pairs) or pairs[0]
    start, end = chosen.start, chosen.end
    return Span(start, end) if 0.0 <= start < end < math.inf else None


def parse_moment(text: str) -> float | None:
    """The seconds of a text that is one time and nothing else: `12.5`, `00:12.5`, `1m05s`."""
    words = [t for t in tokens(text) if t.kind != "fill"]
    if len(words) != 1 or words[0].kind != "time" or not 0.0 <= words[0].seconds < math.inf:
        return None
    return words[0].seconds


@dataclass(frozen=True, slots=True)
class _Pair:
    start: float
    end: float
    at: int
    """Where it begins in the plain text."""


def _announced(text: str, pairs: list[_Pair]) -> _Pair | None:
    """The first pair that follows words which announce the answer; after "final answer" the last
    such words count."""
    announced: _Pair | None = None
    places = [(m.start(), m.end(), m[0]) for m in _ANNOUNCED.finditer(plain(text))]
    position = 0
    for begin, end, words in places:
        while position < len(pairs) and pairs[position].at < begin:
            position += 1
        if position < len(pairs) and pairs[position].at <= end:
            if words.startswith("event"):
                return announced or pairs[position]
            announced = pairs[position]
    return announced


def _pairs(answer: list[Token]) -> Iterator[_Pair]:
    """Two times each that are told as a span, in order of the text; also those that end before
    they begin, where the words say that they are one."""
    times = [i for i, token in enumerate(answer) if token.kind == "time"]
    for n, i in enumerate(times):
        if _from_the_beginning(answer, i):
            yield _Pair(0.0, answer[i].seconds, answer[i].start)
        if n + 1 == len(times):
            return
        j = times[n + 1]
        a, b, gap, label = answer[i], answer[j], answer[i + 1 : j], _label(answer, i)
        how = _how_joined(gap) or ("weak" if _stand_alone(answer, gap, times) else None)
        counted = _counts(answer, i, j)
        if _is_denied(answer, i) or _is_of_the_whole(answer, i, gap):
            continue
        if how in ("strong", "end") and answer[j + 1 : j + 2] and answer[j + 1].text == "later":
            how = "lasts"
        if how == "start" and label == "lasts" and _is_not_its_length(answer, times, n):
            continue
        if how == "lasts" or (how == "start" and label == "lasts"):
            start, length = (a, b) if how == "lasts" else (b, a)
            yield _Pair(start.seconds, start.seconds + length.seconds, a.start)
        elif how == "end" and label != "end":
            yield _pair(a, b)
        elif how == "start" and label == "end" and b.seconds < a.seconds:
            yield _pair(b, a)
        elif how == "strong" and not counted:
            if not _is_numbering(answer, times, n):
                yield _pair(_in_units_of(b, a), b)
        elif label in ("start", "opens") and (far := _end_in_prose(answer, times, n, label)):
            yield _pair(a, far)
        elif how == "weak" and label != "lasts" and not counted and 0 <= a.seconds < b.seconds:
            if _is_joined(answer, times, n + 1):
                continue  # `clip 2, 3.0 - 7.5`
            yield _pair(_in_units_of(b, a), b)
        elif how is None and _are_told(answer, i, j, alone=len(times) == 2):
            yield _pair(a, b)


_ABOUT_A_TIME = frozenset(("(", ")", "[", "]", "t", "time", "timestamp"))


def _stand_alone(answer: list[Token], gap: list[Token], times: list[int]) -> bool:
    """Whether an answer is nothing but two times, one after the other."""
    if len(times) != 2 or any(t.text not in _ABOUT_A_TIME for t in gap):
        return False
    return not any(t.kind in ("word", "bad", "stop", "sign", "minus") for t in answer)


def _is_joined(answer: list[Token], times: list[int], n: int) -> bool:
    """Whether the n-th time is joined to the next one, more strongly than by a comma."""
    if n + 1 >= len(times):
        return False
    return _how_joined(answer[times[n] + 1 : times[n + 1]]) == "strong"


def _is_not_its_length(answer: list[Token], times: list[int], n: int) -> bool:
    """Whether the n-th time is a length that the start behind it does not need: `video duration:
    60 s, start: 3.0, end: 7.5`."""
    if _length_of_the_whole(answer[max(times[n] - 8, 0) : times[n]]):
        return True
    ends = n + 2 < len(times) and _how_joined(answer[times[n + 1] + 1 : times[n + 2]])
    return ends in ("strong", "end")


def _is_of_the_whole(answer: list[Token], i: int, gap: list[Token]) -> bool:
    """`The video runs from 0.0 to 60.0 s`; `at 3.0 s (the video's duration is 60 s)`."""
    before = " ".join(t.text for t in answer[max(i - 3, 0) : i])
    return _WHOLE_RUNS.search(before) is not None or _length_of_the_whole(gap)


def _length_of_the_whole(words: list[Token]) -> bool:
    """Whether a length is the recording's: `the video's duration`, `the length of the clip`."""
    return _OF_THE_WHOLE.search(" ".join(t.text for t in words)) is not None


_HAPPEN = ("happen", "occur")


def _is_denied(answer: list[Token], i: int) -> bool:
    """`not 1.0 - 2.0 but 3.0 - 7.5`; `does not happen in 1.0 - 2.0`."""
    while i and (answer[i - 1].kind in ("fill", "opens") or answer[i - 1].text in _HAPPEN):
        i -= 1
    return bool(i) and answer[i - 1].text == "not"


def _pair(a: Token, b: Token) -> _Pair:
    return _Pair(a.seconds, b.seconds, a.start)


def _in_units_of(b: Token, a: Token) -> Token:
    """`a` in the unit of `b` where it has none: `2 - 3 minutes`."""
    bare = a.scale is None and a.text and ":" not in a.text
    return replace(a, seconds=a.seconds * b.scale) if bare and b.scale else a


def _from_the_beginning(answer: list[Token], i: int) -> bool:
    """`from the beginning until 7.5 s`."""
    kinds = [t.kind for t in answer[max(i - 8, 0) : i] if t.kind != "fill"]
    return kinds[-3:] == ["opens", "start", "strong"]


def _are_told(answer: list[Token], i: int, j: int, alone: bool) -> bool:
    """Two times at which something is told to happen: `he comes at 3.0 s and leaves at 7.5 s`."""
    for k in (i, j):
        told = answer[k].scale is not None or (answer[k].exact and ":" in answer[k].text)
        if not told or not k or answer[k - 1].text not in ("at", "around", "about"):
            return False
    between = answer[i + 1 : j]
    joined = any(t.text in CONJUNCTIONS for t in between) and all(t.kind != "stop" for t in between)
    return (joined or alone) and answer[i].seconds < answer[j].seconds


def _how_joined(gap: list[Token]) -> str | None:
    """What stands between two times makes of them: `strong`, `weak`, `lasts` (the second is a
    length), `end` or `start` (the second is named so), or nothing."""
    if len(gap) > 12:
        return None
    if [token.text for token in gap] == ["a"]:
        return "strong"  # `de 3 a 7 segundos`
    kinds = {token.kind for token in gap} - {"fill", "frame"}
    if kinds & {"word", "bad", "sign", "minus"}:
        return None
    if "start" in kinds:
        return "start" if "end" not in kinds else None
    if "end" in kinds:
        return "end"
    if "opens" in kinds:
        return None
    if "lasts" in kinds and "strong" not in kinds:  # else `lasts until`
        return "lasts"
    if "stop" in kinds:
        return None
    return "strong" if "strong" in kinds else "weak" if "weak" in kinds else None


def _label(answer: list[Token], i: int) -> str | None:
    """What the words directly before a time call it."""
    for token in reversed(answer[max(i - 6, 0) : i]):
        if token.kind in ("start", "end", "lasts", "opens"):
            return token.kind
        if token.kind != "fill":
            return None
    return None


def _counts(answer: list[Token], i: int, j: int) -> bool:
    """Whether two joined numbers count something that is no time: `5 to 7 people`."""
    a, b = answer[i], answer[j]
    before = answer[i - 1].text if i else ""
    following = answer[j + 1] if j + 1 < len(answer) else None
    if following is not None and b.scale is not None:
        if following.text in MEASURED:
            return True
        if following.text in RECORDINGS and before in ("a", "an", "this"):
            return True
    if b.scale is not None or ":" in b.text or (b.exact and not b.text):
        return False
    if before in NUMBERED and not (a.exact or b.exact):
        return True
    if following is not None and following.text == "at" and not (a.exact or b.exact):
        return answer[j + 2 : j + 3] != [] and answer[j + 2].kind == "time"
    if following is not None and following.text == "of" and b.seconds <= 1.0:
        return True  # `0.25 - 0.5 of the video`
    if following is None or following.text in THINGS or following.kind != "word":
        return following is not None and following.text in THINGS
    return not (a.exact or b.exact or following.text in PROSE or _is_eastern(following))


def _is_eastern(token: Token) -> bool:
    """Chinese, Japanese, Korean: written without spaces, so that a word is not known as one."""
    return token.text[0] >= "\u3000"


def _is_numbering(answer: list[Token], times: list[int], n: int) -> bool:
    """Whether the n-th time only numbers the span behind it: `Scene 2 - 3.0 to 7.5`."""
    if n + 2 >= len(times):
        return False
    i, j, k = times[n : n + 3]
    if answer[i].exact or not (answer[j].exact and answer[k].exact):
        return False
    return _is_joined(answer, times, n + 1)


def _end_in_prose(answer: list[Token], times: list[int], n: int, label: str) -> Token | None:
    """The end of a span that was begun, where prose stands between: `it starts at 3.0, when ...,
    and ends at 7.5`; `between 3.0, when ..., and 7.5`."""
    a = answer[times[n]]
    following = answer[times[n] + 1]
    if not a.exact and following.kind == "word" and following.text not in PROSE:
        return None
    for j in times[n + 1 : n + 5]:
        if j - times[n] > _WORDS_BETWEEN:
            return None
        if label == "opens":
            last = [t for t in answer[max(j - 4, 0) : j] if t.kind != "fill"][-1:]
            joined = last and (last[0].kind == "strong" or last[0].text in CONJUNCTIONS)
            return answer[j] if joined and not _counts(answer, times[n], j) else None
        if (named := _label(answer, j)) in ("start", "end"):
            return answer[j] if named == "end" else None
    return None
