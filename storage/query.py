"""SQL over the tables of a run, for reading only.

Polars' SQL, because it reads Lance through the same scans as the stages and knows lists:
`array_length(completion_token_ids)`, `unnest(sampling_logprobs)`, window functions, joins.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from opd_core.types import VideoOPDError
from storage.schemas import TABLES

if TYPE_CHECKING:
    import polars as pl

    from storage.run import Run

_COMMENT = re.compile(r"--[^\n]*|/\*.*?\*/", re.DOTALL)
_READER = re.compile(r"\b(read|scan)_\w+\"?\s*\(", re.IGNORECASE)
_QUESTIONS = ("select", "with", "show")


def query(run: Run, sql: str) -> pl.DataFrame:
    """The answer to one SELECT, WITH or SHOW TABLES over the tables by name.

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
            f"queries read the run's own tables only: {', '.join(TABLES)}; leave out read_...()"
        )
    frames = {name: run.tables.scan(name) for name in TABLES}
    try:
        return pl.SQLContext(frames).execute(text, eager=True)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise VideoOPDError(_explained(text, error)) from None


def _explained(text: str, error: BaseException) -> str:
    """One sentence: what is wrong, and the names that exist."""
    problem = str(error).strip().split("\n")[0]
    if table := re.search(r"(?:relation|table) '([^']*)' was not found", problem):
        return f"there is no table {table.group(1)!r}; the tables are: {', '.join(TABLES)}"
    if column := re.search(r"(?:unable to find column|no column named) [\"']([^\"']*)", problem):
        words = {word.lower() for word in re.findall(r"\w+", text)}
        columns = "; ".join(
            f"{spec.name} has {', '.join(column.name for column in spec.columns)}"
            for spec in TABLES.values()
            if spec.name in words
        )
        return f"there is no column {column.group(1)!r}; {columns}"
    problem = problem[:300].rstrip(".: ")
    return f"the query failed ({problem}); correct it (the dialect is Polars' SQL)"
