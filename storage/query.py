"""SQL over the tables and views of a run, for reading only.

Polars' SQL, because it reads Lance through the same scans as the stages and knows lists:
`array_length(completion_token_ids)`, `unnest(sampling_logprobs)`, window functions, joins.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from opd_core.types import VideoOPDError
from storage.schemas import TABLES
from storage.views import VIEWS, Texts

if TYPE_CHECKING:
    import polars as pl

    from storage.run import Run

_COMMENT = re.compile(r"--[^\n]*|/\*.*?\*/", re.DOTALL)
_READER = re.compile(r"\b(read|scan)_\w+\"?\s*\(", re.IGNORECASE)
ALL_TAKES = "_all"
"""`rollouts_all` is the table `rollouts` with its superseded rows."""
_NAMES = (*TABLES, *VIEWS)
_QUESTIONS = ("select", "with", "show")


def query(run: Run, sql: str, texts: Texts | None = None) -> pl.DataFrame:
    """The answer to one SELECT, WITH or SHOW TABLES over tables and views, by name.

    `texts` gives the view `tokens` the text of its tokens.
    Raises `VideoOPDError` for anything else, and for a name that does not exist, with the known.
    """
    import polars as pl

    text = _COMMENT.sub(" ", sql).strip().rstrip(";").strip()
    first = re.match(r"[(\s]*(\w*)", text)
    word = first.group(1) if first else ""
    if word.lower() not in _QUESTIONS:
        raise VideoOPDError(
            f"queries only read, and {word or 'nothing'!r} does not;"
            " begin with SELECT, WITH or SHOW TABLES"
        )
    if _READER.search(text):
        raise VideoOPDError(
            f"queries read the run's own tables only: {', '.join(_NAMES)}; leave out read_...()"
        )
    frames = {name: run.scan(name) for name in TABLES}
    for name in TABLES:  # on request only, so that SHOW TABLES stays short
        if re.search(rf"\b{name}{ALL_TAKES}\b", text):
            frames[f"{name}{ALL_TAKES}"] = run.scan(name, superseded=True)
    frames |= {"trajectories": run.trajectories(), "tokens": run.tokens(texts)}
    try:
        return pl.SQLContext(frames).execute(text, eager=True)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise VideoOPDError(_explained(run, text, error)) from None


def _explained(run: Run, text: str, error: BaseException) -> str:
    """One sentence: what is wrong, and the names that exist."""
    problem = str(error).strip().split("\n")[0]
    if table := re.search(r"(?:relation|table) '([^']*)' was not found", problem):
        return f"there is no table {table.group(1)!r}; the tables are: {', '.join(_NAMES)}"
    if column := re.search(r"(?:unable to find column|no column named) [\"']([^\"']*)", problem):
        words = {word.lower() for word in re.findall(r"\w+", text)}
        known = {spec.name: [c.name for c in spec.columns] for spec in TABLES.values()}
        views = {"trajectories": run.trajectories, "tokens": run.tokens}
        known |= {n: f().collect_schema().names() for n, f in views.items() if n in words}
        columns = "; ".join(f"{n} has {', '.join(c)}" for n, c in known.items() if n in words)
        return f"there is no column {column.group(1)!r}; {columns}"
    problem = problem[:300].rstrip(".: ")
    return f"the query failed ({problem}); correct it (the dialect is Polars' SQL)"
