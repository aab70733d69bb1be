"""SQL over the tables and views of a run, for reading only.

Polars' SQL, because it reads Lance through the same scans as the stages and knows lists:
`array_length(completion_token_ids)`, `unnest(sampling_logprobs)`, window functions, joins.
What Polars lacks and people type: `DESCRIBE rollouts`, and columns named by their expressions.
"""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING

from opd_core.types import VideoOPDError
from storage.asking import sql_names
from storage.asking.described import describe
from storage.tables.schemas import TABLES
from storage.tables.takes import ALL_TAKES
from storage.tables.views import VIEWS, Texts

if TYPE_CHECKING:
    import polars as pl

    from storage.runs.run import Run

_COMMENT = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|(--[^\n]*|/\*.*?\*/)", re.DOTALL)
"""A comment is the group; a quoted text that looks like one is none."""
_READER = re.compile(r"\b(read|scan)_\w+\"?\s*\(", re.IGNORECASE)
_DESCRIBE = re.compile(
    r"(?:describe|desc|show\s+columns\s+(?:from|in))\s+(?:table\s+)?(.+)", re.IGNORECASE | re.DOTALL
)
_SHOW_TABLES = re.compile(r"show\s+tables", re.IGNORECASE)
_NAMES = (*TABLES, *VIEWS)
_QUESTIONS = ("select", "with")


def query(
    run: Run, sql: str, texts: Texts | None = None, trajectories: pl.LazyFrame | None = None
) -> pl.DataFrame:
    """The answer to one SELECT, WITH, DESCRIBE or SHOW TABLES over tables and views, by name.

    A column of the answer without an alias is named by its expression: `median(student_iou)`.
    `texts` gives the view `tokens` the text of its tokens; `trajectories` stands in for that view
    (`storage/asking/scalars.py`).
    Raises `VideoOPDError` for anything else, and for a name that does not exist, with the known.
    """
    text = _COMMENT.sub(lambda m: " " if m[1] else m[0], sql).strip().rstrip(";").strip()
    if _SHOW_TABLES.fullmatch(text):
        return _tables()
    if described := _DESCRIBE.fullmatch(text):
        return _described(run, described[1].strip(), texts)
    return _answer(run, text, texts, trajectories)


def _answer(
    run: Run, text: str, texts: Texts | None, trajectories: pl.LazyFrame | None = None
) -> pl.DataFrame:
    import polars as pl

    first = re.match(r"[(\s]*(\w*)", text)
    word = first.group(1) if first else ""
    if word.lower() not in _QUESTIONS:
        raise VideoOPDError(
            f"queries only read, and {word or 'nothing'!r} does not;"
            " begin with SELECT, WITH, DESCRIBE or SHOW TABLES"
        )
    if _READER.search(text):
        raise VideoOPDError(
            f"queries read the run's own tables only: {', '.join(_NAMES)}; leave out read_...()"
        )
    frames = _frames(run, text, texts)
    if trajectories is not None:
        frames["trajectories"] = trajectories
    context = pl.SQLContext(frames)
    # As it was typed comes last: its error is the one that is told.
    attempts = list(dict.fromkeys((*sql_names.named(text), text)))
    for attempt in attempts:
        try:
            return context.execute(attempt, eager=True)
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
            problem = error
    raise VideoOPDError(_explained(run, text, problem)) from None


def _frames(run: Run, text: str, texts: Texts | None) -> dict[str, pl.LazyFrame]:
    """Every table and view that `text` may name."""
    frames = {name: run.scan(name) for name in TABLES}
    for name in TABLES:  # on request only
        if re.search(rf"\b{name}{ALL_TAKES}\b", text):
            frames[f"{name}{ALL_TAKES}"] = run.scan(name, superseded=True)
    return frames | {"trajectories": run.trajectories(), "tokens": run.tokens(texts)}


def _tables() -> pl.DataFrame:
    import polars as pl

    about = {name: spec.description for name, spec in TABLES.items()} | VIEWS
    return pl.DataFrame({"name": list(about), "description": list(about.values())})


def _described(run: Run, what: str, texts: Texts | None) -> pl.DataFrame:
    """A row a column, of a table or view or of the answer to a query."""
    if re.match(r"[(\s]*(select|with)\b", what, re.IGNORECASE):
        return describe("", _answer(run, what, texts).schema)
    name = what.strip('"`')
    frames = _frames(run, name, texts)
    if name not in frames:
        raise VideoOPDError(_no_table(name))
    return describe(name.removesuffix(ALL_TAKES), frames[name].collect_schema())


def _no_table(name: str) -> str:
    near = difflib.get_close_matches(name, _NAMES, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"there is no table {name!r}; {hint}the tables are: {', '.join(_NAMES)}"


def _explained(run: Run, text: str, error: BaseException) -> str:
    """One sentence: what is wrong, and the names that exist."""
    problem = str(error).strip().split("\n")[0]
    if table := re.search(r"(?:relation|table) '([^']*)' was not found", problem):
        return _no_table(table.group(1))
    if column := re.search(r"(?:unable to find column|no column named) [\"']([^\"']*)", problem):
        words = {word.lower() for word in re.findall(r"\w+", text)}
        known = {spec.name: [c.name for c in spec.columns] for spec in TABLES.values()}
        views = {"trajectories": run.trajectories, "tokens": run.tokens}
        known |= {n: f().collect_schema().names() for n, f in views.items() if n in words}
        columns = "; ".join(f"{n} has {', '.join(c)}" for n, c in known.items() if n in words)
        return f"there is no column {column.group(1)!r}; {columns}"
    problem = problem[:300].rstrip(".: ")
    return f"the query failed ({problem}); correct it (the dialect is Polars' SQL)"
