"""Columns of an answer named by their expressions: `median(student_iou)`, `count(*)`.

Polars names them by the first column inside (`student_iou`), or `len`, or `literal`, and refuses
two of one name. So an alias is written behind every expression of a select list that has none. The
text is cut into words only as far as that takes; what is not understood is left as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

_WORD = re.compile(
    r"""(?P<space>\s+)|(?P<text>'(?:[^']|'')*')|(?P<name>"(?:[^"]|"")*"|`[^`]*`|[^\W\d]\w*)"""
    r"""|(?P<number>\d[\w.]*)|(?P<sign>::|.)""",
    re.DOTALL,
)
_ENDS_LIST = {
    "from", "where", "group", "having", "order", "limit", "union", "intersect", "except", "qualify",
    "window", "offset", "fetch", "into",
}  # fmt: skip
_VALUES = {"null", "true", "false", "end"}
"""Reserved words that end an expression,"""
_OPERATORS = {
    "and", "or", "not", "in", "is", "like", "ilike", "between", "case", "when", "then", "else",
    "distinct", "div", "xor", "rlike", "regexp", "over", "filter", "as", "all", "escape",
    "interval",
}  # fmt: skip
"""and those behind which an expression goes on."""


@dataclass(frozen=True, slots=True)
class _Word:
    kind: str
    text: str
    start: int
    end: int
    depth: int
    """How many brackets stand around it; an opening bracket counts as outside of itself."""

    @property
    def keyword(self) -> str:
        return self.text.lower() if self.kind == "name" else ""


@dataclass(frozen=True, slots=True)
class _Item:
    """One of a select list."""

    words: tuple[_Word, ...]
    text: str

    @property
    def alias(self) -> str | None:
        """The name it gives itself."""
        *before, last = self.words
        depth = self.words[0].depth
        if last.kind != "name" or last.depth != depth or last.keyword in _VALUES | _OPERATORS:
            return None
        if not before:
            return None
        behind = before[-1]
        if behind.keyword == "as":
            return _plain(last.text)
        ends = behind.text in ")]" or behind.kind in ("text", "number") or behind.keyword in _VALUES
        named = behind.kind == "name" and behind.keyword not in _OPERATORS
        return _plain(last.text) if ends or named else None

    @property
    def column(self) -> str | None:
        """Its name, where it is nothing but a column."""
        names, dots = self.words[::2], self.words[1::2]
        if any(w.kind != "name" or w.keyword in _VALUES for w in names):
            return None
        return _plain(names[-1].text) if all(w.text == "." for w in dots) else None

    @property
    def is_several(self) -> bool:
        """`*`, `t.*`, `columns('...')`, with what may follow."""
        first = self.words[0]
        star = [w.text for w in self.words[:3]]
        return first.text == "*" or star[1:] == [".", "*"] or first.keyword == "columns"


def named(sql: str) -> Iterator[str]:
    """The query with aliases, in the order in which to try: everywhere; with plain columns beside
    a `*` renamed, too; in the outermost list only, where the rest relies on Polars' own names."""
    words = _words(sql)
    lists = [_select_list(sql, words, i) for i, w in enumerate(words) if w.keyword == "select"]
    outermost = [
        items for items in lists
        if items and items[0].words[0].depth == min(w.depth for w in words)
    ]  # fmt: skip
    yield _with_aliases(sql, lists, beside_star=False)
    yield _with_aliases(sql, lists, beside_star=True)
    yield _with_aliases(sql, outermost, beside_star=False)


def _words(sql: str) -> list[_Word]:
    words, depth = [], 0
    for match in _WORD.finditer(sql):
        text, kind = match[0], str(match.lastgroup)
        if kind == "space":
            continue
        depth -= text in (")", "]")
        words.append(_Word(kind, text, match.start(), match.end(), depth))
        depth += text in ("(", "[")
    return words


def _select_list(sql: str, words: list[_Word], select: int) -> list[_Item]:
    """The items behind the word `select`."""
    depth, first = words[select].depth, select + 1
    while first < len(words) and words[first].keyword in ("distinct", "all"):
        first += 1
    items: list[_Item] = []
    item: list[_Word] = []
    for i in range(first, len(words) + 1):
        word = words[i] if i < len(words) else None
        inside = word is not None and word.depth >= depth and not _ends(words, i, depth)
        if word is not None and inside and not (word.text == "," and word.depth == depth):
            item.append(word)
            continue
        if item:
            text = " ".join(sql[item[0].start : item[-1].end].split())
            items.append(_Item(tuple(item), text))
        item = []
        if not inside:
            break
    return items


def _ends(words: list[_Word], i: int, depth: int) -> bool:
    word, before = words[i], words[i - 1]
    if word.depth != depth:
        return False
    if word.text == ")" or word.text == ";":
        # An opening bracket inside the list has the list's own depth, and so has its closing one.
        return word.text == ";" or not _opened_inside(words, i, depth)
    if word.keyword not in _ENDS_LIST:
        return False
    is_distinct_from = word.keyword == "from" and before.keyword == "distinct"
    return not is_distinct_from and not (word.keyword == "except" and before.text == "*")


def _opened_inside(words: list[_Word], i: int, depth: int) -> bool:
    """Whether the bracket that closes at `i` opened behind the list's `select`."""
    for word in reversed(words[:i]):
        if word.depth == depth and word.text == "(":
            return True
        if word.depth == depth and word.keyword == "select":
            return False
    return False


def _with_aliases(sql: str, lists: list[list[_Item]], beside_star: bool) -> str:
    aliases: dict[int, str] = {}
    for items in lists:
        taken = {name for item in items if (name := item.alias) and item.column is None}
        star = False
        for item in items:
            star |= item.is_several
            column = item.column
            if item.is_several or (column is None and item.alias):
                continue
            if column is not None and column not in taken and not (star and beside_star):
                taken.add(column)
                continue
            wanted = item.text.replace('"', "") if column is not None else item.text
            alias = _distinct(wanted, taken, first=column == wanted and star and beside_star)
            taken.add(alias)
            aliases[item.words[-1].end] = alias
    for end in sorted(aliases, reverse=True):
        quoted = aliases[end].replace('"', '""')
        sql = f'{sql[:end]} AS "{quoted}"{sql[end:]}'
    return sql


def _distinct(name: str, taken: set[str], first: bool) -> str:
    """`name`, or `name:1`, ... as Polars calls a second one; never `name` itself with `first`."""
    if name not in taken and not first:
        return name
    return next(n for i in count(1) if (n := f"{name}:{i}") not in taken)


def _plain(name: str) -> str:
    return name[1:-1].replace('""', '"') if name[0] in '"`' else name
