"""An answer as tokens: its times in seconds, and what the words and signs between them say.

Markup goes first (markdown, tags, LaTeX, HTML's entities, full-width forms), so that what is left
is what a person sees. Every pattern is possessive or bounded: the cost is linear in the text.
"""

from __future__ import annotations

import html
import re
import unicodedata
from dataclasses import dataclass, replace

from opd_core.spans.answer_words import KINDS, MONTHS, NUMBERS

_SIGNS = str.maketrans(
    {
        **dict.fromkeys("‐‑‒–—―−﹘﹣－⁃", "-"),
        **dict.fromkeys("～〜∼∽˜", "~"),
        **dict.fromkeys("≤≦⩽", " ~ "),
        **dict.fromkeys("→⟶➔➡⇒➜⟹⇨►▶", " -> "),
        **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff\u00ad", ""),
        **dict.fromkeys("：∶", ":"),
        **dict.fromkeys("，、", ","),
        **dict.fromkeys("。．", "."),
        **dict.fromkeys("；", ";"),
        **dict.fromkeys("（【「『〔〈《", "("),
        **dict.fromkeys("）】」』〕〉》", ")"),
        **dict.fromkeys("’‘′", "'"),
        **dict.fromkeys("“”″", '"'),
        **dict.fromkeys("％", "%"),
        "…": "..",
    }
)
_OTHER_DIGIT = re.compile(r"[^\W0-9_]")
_DIGIT = re.compile(r"[0-9]")
_PRIMES = re.compile(r"(?<![\d.])(\d{1,3})'\s?(\d{1,2}(?:\.\d{1,3})?)(?:\"|'')")
_LATEX = re.compile(
    r"\\(?:(to|rightarrow|longrightarrow)(?![a-z])|(sim)(?![a-z])"
    r"|text[a-z]*+|math[a-z]*+|boxed|left|right|quad|qquad|[,;:! ]|n)"
)
_TAG = re.compile(r"</[a-z][^<>]{0,60}>|<(?:b|i|u|p|em|strong|span|div|li|ul|ol|td|tr|br|code)/?>")
_ARROW_OR_ANGLE = re.compile(r"([-=]{1,3}>{1,2}|>>)|[<>]")
_MARKUP = re.compile(r"[*`_#\"'{}$\\]")
_HUMP = re.compile(r"(?<=[a-z])(?=[A-Z])")
_SPACED_POINT = re.compile(r"(?<![\d.,:])(\d{1,6}) \. ?(?=\d{1,3}(?![\d.:]))")
_TOLERANCE = re.compile(r"\s?(?:±|\+/?-)\s?\d{1,6}(?:\.\d{1,6})?")
_SPACED_FRACTIONS = re.compile(
    r"(?<![\d.])(\d{1,5})\. (\d{1,2}) ?(-|~|->|to) ?(\d{1,5})\. (\d{1,2})(?![\d.])"
)
_YEAR = r"(?:(?:,| of)? (?:19|20)\d\d)"
_DATE = re.compile(
    rf"\b(?:{MONTHS}|may)\.? \d{{1,2}}(?:st|nd|rd|th)?(?![\d:]|\.\d){_YEAR}?\b"
    rf"|\b\d{{1,2}}(?:st|nd|rd|th)?(?: of)? (?:(?:{MONTHS})\b\.?{_YEAR}?|may{_YEAR})\b"
)
_HUNDREDS = re.compile(r"\b(\d|a) hundred(?:(?: and)? (\d{1,2})\b(?! hundred))?")
_POINT = re.compile(r"\b(\d{1,4}) point ((?:\d )*\d)\b")
_NUMBER_WORD = re.compile(rf"\b(?:{'|'.join(sorted(NUMBERS, key=len, reverse=True))})\b")


def plain(text: str) -> str:
    """What a person sees of the text, in lower case, with ASCII's digits and signs."""
    text = _HUMP.sub(" ", html.unescape(text)).translate(_SIGNS).lower()
    if not text.isascii():
        text = _OTHER_DIGIT.sub(_ascii_digit, text)
    if not _DIGIT.search(text):
        text = _number_words(text)
    text = _SPACED_POINT.sub(r"\1.", text)
    text = _SPACED_FRACTIONS.sub(r"\1.\2 \3 \4.\5", text)
    text = _TOLERANCE.sub(" ", text)
    text = _DATE.sub(" date ", text)
    text = _PRIMES.sub(r" \1m\2s ", text)
    text = _LATEX.sub(lambda m: " to " if m[1] else " ~ " if m[2] else " ", text)
    text = _TAG.sub(" ", text)
    text = _ARROW_OR_ANGLE.sub(lambda m: " -> " if m[1] else " ", text)
    return _MARKUP.sub(" ", text)


def _number_words(text: str) -> str:
    """`one hundred and twelve point five` as `112.5`."""
    text = _NUMBER_WORD.sub(lambda m: str(NUMBERS[m[0]]), text)
    text = _HUNDREDS.sub(
        lambda m: str(100 * (1 if m[1] == "a" else int(m[1])) + int(m[2] or 0)), text
    )
    return _POINT.sub(lambda m: f"{m[1]}.{m[2].replace(' ', '')}", text)


def _ascii_digit(digit: re.Match[str]) -> str:
    value = unicodedata.decimal(digit[0], None)
    return digit[0] if value is None else str(value)


@dataclass(frozen=True, slots=True)
class Token:
    kind: str
    """`time`; `bad`, a number that is no time; `minus`; `word`, `sign`, `stop`; or one of
    answer_words."""
    text: str
    start: int
    end: int
    seconds: float = 0.0
    scale: float | None = None
    """Seconds of its unit; None where it has none, or several, or is a clock."""
    exact: bool = False
    """A clock, or with a unit or a fraction: no count of something."""


_UNITS = {
    3600.0: "h hr hrs hour hours stunde stunden heure heures hora horas ч 小时 小時 시간",
    60.0: "m min mins minute minutes minuten minuto minutos minuti мин минут минуты минута "
    "分钟 分鐘 分 분",
    1.0: "s sec secs second seconds seconde secondes seconden secondi secondo segundo segundos seg "
    "sekunde sekunden sekunder sekund sek giây detik saniye с сек секунд секунды секунда секунде "
    "секунду секундами ثانية "
    "秒钟 秒鐘 秒 초",
    0.001: "ms msec msecs millisecond milliseconds 毫秒",
}
SCALES = {unit: scale for scale, units in _UNITS.items() for unit in units.split()}
_CJK = r"\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_LETTER = rf"(?:(?![{_CJK}])[^\W\d_])"


def _any_of(words: list[str]) -> str:
    """Longest first; a word in letters ends where its letters do."""
    ordered = sorted(words, key=len, reverse=True)
    eastern = [w for w in ordered if re.match(f"[{_CJK}]", w)]
    letters = [w for w in ordered if w not in eastern]
    return rf"(?:(?:{'|'.join(letters)})(?!{_LETTER})|{'|'.join(eastern)})"


_UNIT = _any_of(list(SCALES))
_EASTERN = "|".join(sorted((w for w in KINDS if re.match(f"[{_CJK}]", w)), key=len, reverse=True))
_NUMBER = r"(?:\d++(?:\.\d++|\.(?![\d.]))?|\.\d++)"
_TOKEN = re.compile(
    rf"""
    (?P<bad>
        \d++(?:\.\d++){{2,}}            # 7.5.0
      | \d++(?:\.\d++)?e[-+]?\d++       # 1e3
      | \d++(?:-\d++){{2,}}             # 2024-05-12
      | \d++(?:/\d++)++                 # 2/3
      | \d++(?::\d++){{3,}}             # four parts are no clock
      | {_NUMBER}\s?[%‰°]
      | \d++(?:st|nd|rd|th)(?!{_LETTER})
    )
  | (?P<clock>\d++(?::\d{{1,2}}(?!\d)){{1,2}}(?:[.,]\d{{1,6}}(?![\d:]))?)
      (?:\s?(?:{_UNIT}|h:|uhr))?
  | (?P<commas>[1-9]\d{{0,2}}(?:,\d{{3}}){{1,3}}(?![,\d])(?:\.\d++)?|\d++,\d++(?![.,]?\d))
      (?:(?:\s{{0,3}}|-)(?P<unit_of_commas>{_UNIT})\.?)?
  | (?P<number>{_NUMBER})
      (?:(?:\s{{0,3}}|-)(?P<unit>{_UNIT})\.?|(?!(?!to\d){_LETTER}))
  | (?P<glued>(?:to|from)(?=\d))
  | (?P<coded>{_LETTER}++\d[\w.]*+|\d[\d.]*+[^\W{_CJK}]*+|\d[\d.,:]*+)
  | (?P<eastern>{_EASTERN}|[{_CJK}])
  | (?P<word>(?:approx|ca|no|nr)\.|{_LETTER}++)
  | (?P<join>->|-{{1,3}}|~|\.{{2,}})
  | (?P<weak>[,;|/&])
  | (?P<stop>[.!?])
  | (?P<fill>[()\[\]:=@≈]|\+(?=\d))
  | (?P<sign>[^\s\w])
    """,
    re.VERBOSE,
)


def tokens(text: str) -> list[Token]:
    """The tokens of an answer's text, in order; times that were told in parts are one."""
    flat = plain(text)
    in_order: list[Token] = []
    previous: Token | None = None
    """The last that is no bracket."""
    for match in _TOKEN.finditer(flat):
        token = _token(match, flat, previous)
        in_order.append(token)
        previous = previous if token.kind == "fill" and len(token.text) == 1 else token
    return _merged(_without_frames(_decided(in_order)))


def _token(match: re.Match[str], flat: str, previous: Token | None) -> Token:
    name = next(kind for kind in _TOKEN.groupindex if match[kind] is not None)
    text, start, end = match[name], match.start(), match.end()
    below = previous is not None and previous.kind == "minus" and previous.end == start
    if name == "clock":
        seconds = 0.0
        for part in text.replace(",", ".").split(":"):
            seconds = seconds * 60.0 + float(part)
        return Token("time", text, start, end, -seconds if below else seconds, None, True)
    if name == "number":
        unit = match["unit"]
        scale = SCALES[unit] if unit else None
        seconds = float(text) * (scale or 1.0)
        exact = unit is not None or "." in text.rstrip(".")
        return Token("time", text, start, end, -seconds if below else seconds, scale, exact)
    if name == "commas":
        unit = match["unit_of_commas"]
        bracketed = flat[:start][-1:] in ("[", "(") and flat[end : end + 1] in ("]", ")")
        kind = "pair" if bracketed and not unit else "commas"
        return Token(kind, text, start, end, scale=SCALES[unit] if unit else None)
    if name == "join":
        joins = previous is not None and previous.kind in ("time", "pair", "commas", "bad")
        minus = text == "-" and flat[end : end + 1].isdigit() and not joins
        return Token("minus" if minus else "strong", text, start, end)
    if name == "coded":
        return Token("bad", text, start, end)
    if name in ("word", "eastern", "glued"):
        return Token(KINDS.get(text.rstrip("."), "word"), text, start, end)
    return Token(name, text, start, end)


def _decided(answer: list[Token]) -> list[Token]:
    """Commas inside numbers as what they are: of a decimal, of thousands, or between two times."""
    alone = sum(t.kind in ("time", "commas", "pair") for t in answer) == 1
    decided: list[Token] = []
    for token in answer:
        if token.kind == "pair" or (token.kind == "commas" and alone):
            for i, part in enumerate(token.text.split(",")):
                if i:
                    decided.append(replace(token, kind="weak", text=","))
                decided.append(_number(token, part))
        elif token.kind == "commas":
            whole, _, rest = token.text.partition(",")
            thousands = whole != "0" and len(whole) < 4 and len(rest.split(".")[0]) % 4 == 3
            text = token.text.replace(",", "" if thousands else ".")
            decided.append(replace(_number(token, text), exact=True))
        else:
            decided.append(token)
    return decided


def _number(token: Token, text: str) -> Token:
    exact = token.scale is not None or "." in text
    seconds = float(text) * (token.scale or 1.0)
    return replace(token, kind="time", text=text, seconds=seconds, exact=exact)


def _without_frames(answer: list[Token]) -> list[Token]:
    """Numbers of frames are of kind `frame`, as the word is: `frame 12`, `frame no. 12`, `12
    frames`."""
    kinds = [t.kind for t in answer]
    for i, token in enumerate(answer):
        if token.kind != "frame":
            continue
        after = i + 1
        while after < min(len(answer), i + 4) and answer[after].text in _BETWEEN:
            after += 1
        for j in (after, i - 1):
            if 0 <= j < len(answer) and answer[j].kind in ("time", "bad") and not answer[j].scale:
                kinds[j] = "frame"
                break
    return [replace(t, kind=kind) for t, kind in zip(answer, kinds, strict=True)]


CONJUNCTIONS = ("and", "&", "und", "et", "y", "e", "и")
_BETWEEN = frozenset(("number", "no", "no.", "nr", "nr.", ":", "=", "(", "["))


def _merged(answer: list[Token]) -> list[Token]:
    """`1 minute and 5 seconds` and `1m05` as one time."""
    merged: list[Token] = []
    above: float | None = None
    """The last unit of the time that ends `merged`; None: no part of a time may follow."""
    skipped: list[Token] = []
    for token in answer:
        last = merged[-1] if merged else None
        if last is not None and above is not None:
            if token.kind == "weak" and token.text in (",", *CONJUNCTIONS) and not skipped:
                skipped.append(token)
                continue
            if _continues(token, above, token.start == last.end):
                scale = token.scale or above / 60.0
                seconds = token.seconds if token.scale else token.seconds * scale
                merged[-1] = replace(
                    last, text="", end=token.end, seconds=last.seconds + seconds, scale=None
                )
                above, skipped = scale, []
                continue
        merged += [*skipped, token]
        skipped = []
        above = token.scale if token.kind == "time" and token.seconds >= 0 else None
    return merged + skipped


def _continues(part: Token, above: float, tight: bool) -> bool:
    """Whether `part` goes on with a time whose last unit was of `above` seconds."""
    if part.kind != "time" or part.seconds < 0:
        return False
    if part.scale is None:
        return tight and above >= 60.0 and part.seconds < 60.0 and ":" not in part.text
    return part.scale < above and part.seconds < above
