"""A prompt of a config's own words: `prompt.text`, `prompt.reader` and `prompt.answer`.

    [prompt]
    text = "When does '{query}' happen? Answer: from START to END."
    reader = 'from (?P<start>\\S+) to (?P<end>\\S+)'
    answer = "from {start:.1f} to {end:.1f}"

A regular expression can take time that grows exponentially with the text. It is tried on texts that
bring this out when the config is read, and stopped after `SECONDS_AN_ANSWER` in a run, which ends
the stage with a sentence: an answer that nobody has read is not an answer without a span.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Protocol

from opd_core.extensions import TEMPLATES, PromptTemplate
from opd_core.spans.answer_reader import after_thoughts, parse_moment
from opd_core.templates.named import READERS_VERSION
from opd_core.types import Span, VideoOPDError

SECONDS_AN_ANSWER = 5.0
_TRIALS = [
    (piece * 1000)[:1000] + end
    for piece in ("1", "1.", "1 ", "a", " ", "12.5 to ", "\n", "<a>")
    for end in ("", "!")
]
_SPANS = (Span(0.0, 12.0), Span(3.2, 67.5))


class PromptSettings(Protocol):
    """A config's [prompt] (`PromptSection`)."""

    @property
    def template(self) -> str: ...
    @property
    def text(self) -> str | None: ...
    @property
    def reader(self) -> str | None: ...
    @property
    def answer(self) -> str | None: ...
    def of(self, name: str) -> Any: ...


@lru_cache(maxsize=32)
def template_of(prompt: PromptSettings) -> PromptTemplate:
    """What a config's [prompt] says. Raises `ValueError` with the sentence that says what is wrong
    with it."""
    named = _configured(prompt, prompt.template)
    text, reader, answer = prompt.text, prompt.reader, prompt.answer
    if text is not None:
        if prompt.template != "timelens":
            raise ValueError(
                f"prompt.text and prompt.template = {prompt.template!r} are two questions; leave "
                f"one of them out (the template's reader is prompt.reader = {prompt.template!r})"
            )
        if reader is None:
            raise ValueError(
                "prompt.text needs to know how its answers are read; set prompt.reader to "
                f"{_names()}, or to a regular expression with two groups, the start and the end"
            )
        _check_fields("prompt.text", text, ("query",), plain=True)
    parse, key, write = named.parse_span, named.reader, named.format_answer
    if reader is not None and reader in TEMPLATES:
        other = _configured(prompt, reader)
        parse, key, write = other.parse_span, other.reader, other.format_answer
    elif reader is not None:
        parse, key = _by_pattern(reader), f"{reader} {READERS_VERSION}"
        write = write if text is None else _unwritten
    if answer is not None:
        _check_fields("prompt.answer", answer, ("start", "end"))
        write = _writer(answer)
    made = PromptTemplate(named.text if text is None else text, write, parse, key)
    if answer is not None and (unread := unreadable(made)):
        raise ValueError(
            f"prompt.answer = {answer!r} writes {unread!r}, which prompt.reader does not read as "
            "that span; let the two agree"
        )
    return made


def _configured(prompt: PromptSettings, name: str) -> PromptTemplate:
    """A template as its settings, [prompt.NAME], make it."""
    template = TEMPLATES[name]
    return template if template.configured is None else template.configured(prompt.of(name))


def _names() -> str:
    return ", ".join(repr(name) for name in TEMPLATES)


def unreadable(template: PromptTemplate) -> str | None:
    """An answer that the template writes and its reader does not read; None: there is none."""
    for span in _SPANS:
        try:
            text = template.format_answer(span)
        except VideoOPDError as error:
            return str(error)
        read_back = template.parse_span(text)
        if read_back is None or max(abs(a - b) for a, b in zip(read_back, span, strict=True)) > 0.5:
            return text
    return None


def _check_fields(key: str, text: str, names: tuple[str, ...], plain: bool = False) -> None:
    """Raises `ValueError` where the text does not hold just these fields; `plain`: as they are."""
    example = " and ".join(f"{{{name}}}" for name in names)
    braces = "write a brace that is meant as one twice, {{ and }}"
    try:
        fields = [(n, s, c) for _, n, s, c in string.Formatter().parse(text) if n is not None]
    except ValueError as error:
        raise ValueError(f"{key} = {text!r}: {error}; {braces}") from None
    for name, style, conversion in fields:
        if name not in names or (plain and (style or conversion)):
            raise ValueError(f"{key} = {text!r}: only {example} is filled in; {braces}")
    if missing := [name for name in names if name not in {field[0] for field in fields}]:
        raise ValueError(
            f"{key} = {text!r} has no {{{missing[0]}}}; put it where the {missing[0]} is to stand"
        )
    if not plain:
        try:
            text.format(start=1.5, end=2.5)
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{key} = {text!r}: {error}; write for example {{start:.1f}}"
            ) from None


def _writer(answer: str) -> Callable[[Span], str]:
    return lambda span: answer.format(start=span.start, end=span.end)


def _unwritten(span: Span) -> str:
    raise VideoOPDError(
        "a prompt of your own words that is read by a regular expression does not say how an "
        'answer is written; set prompt.answer, for example "{start:.1f} - {end:.1f}"'
    )


def _by_pattern(pattern: str) -> Callable[[str], Span | None]:
    """Reads by the first match. Raises `ValueError` for a pattern that cannot be used."""
    import regex  # the one that can be stopped

    wrong = f"prompt.reader = {pattern!r} is neither a reader ({_names()}) nor a regular expression"
    try:
        compiled = regex.compile(pattern)
    except regex.error as error:
        raise ValueError(f"{wrong} ({error}); correct it") from None
    if {"start", "end"} <= set(compiled.groupindex):
        groups: tuple[int | str, int | str] = ("start", "end")
    elif compiled.groups == 2 and not compiled.groupindex:
        groups = (1, 2)
    else:
        raise ValueError(
            f"{wrong} with two groups, the start and the end; give it two, or name them as in "
            r"(?P<start>\S+) to (?P<end>\S+)"
        )
    try:
        for trial in _TRIALS:
            compiled.search(trial, timeout=SECONDS_AN_ANSWER)
    except TimeoutError:
        raise ValueError(
            f"prompt.reader = {pattern!r} takes for ever on some texts; write it without a repeat "
            "inside a repeat"
        ) from None

    def read(text: str) -> Span | None:
        text = after_thoughts(text)
        try:
            match = compiled.search(text, timeout=SECONDS_AN_ANSWER)
        except TimeoutError:
            raise VideoOPDError(
                f"prompt.reader = {pattern!r} took more than {SECONDS_AN_ANSWER:g} s on an answer "
                f"of {len(text):,} characters ({text[:60]!r} ...); write it without a repeat "
                "inside a repeat"
            ) from None
        if not match:
            return None
        start, end = (parse_moment(match[group] or "") for group in groups)
        return None if start is None or end is None or start >= end else Span(start, end)

    return read
