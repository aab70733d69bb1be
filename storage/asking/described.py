"""What each column of a table or view means, for `DESCRIBE` and for the card of an export."""

from __future__ import annotations

from typing import TYPE_CHECKING

from storage.tables.schemas import TABLES
from storage.tables.views import VIEWS

if TYPE_CHECKING:
    import polars as pl

_OF_VIEWS = {
    "teacher_iou": "Mean IoU of the round's teacher's own answers.",
    "teacher_answers": "How many those are.",
    "tokens": "Tokens of the answer.",
    "reverse_kl": "k1 estimate of KL(pi_v || q): mean sampling - teacher log-prob, nats a token.",
    "trained": "Whether a committed update trained on it.",
    "trained_in": "policy_version of the policy that update made.",
    "position": "0, 1, ... within the answer.",
    "token_id": "The sampled token.",
    "text": "As text.",
    "sampling_logprob": "log pi_v, recorded while sampling.",
    "student_logprob": "log pi, of the trainer when it first met the rollout.",
    "teacher_logprob": "log q of the round's teacher.",
    "advantage": "teacher_logprob - sampling_logprob.",
}
"""Columns that the views add to those of the tables."""

_OF_TOKENS = {
    "teacher_entropy": "Entropy of q at the token, nats (score.teacher_entropy).",
    "forward_kl": "KL(q || pi_v) at the token, whole vocabulary, nats (`videoopd rescore`).",
    "reverse_kl": "KL(pi_v || q) at the token, whole vocabulary, nats (`videoopd rescore`).",
    "js": "Jensen-Shannon divergence at the token, nats (`videoopd rescore`).",
}
"""Columns that are lists, or means, elsewhere."""

_NEVER_NULL = {"tokens", "trained", "position", "token_id"}
"""Of the columns that views make."""


def meanings(name: str) -> dict[str, str]:
    """Column -> its meaning, of the table or view."""
    if name in TABLES:
        return {column.name: column.description for column in TABLES[name].columns}
    known = {c.name: c.description for spec in reversed(TABLES.values()) for c in spec.columns}
    return known | _OF_VIEWS | (_OF_TOKENS if name == "tokens" else {})


def nullable(name: str) -> set[str] | None:
    """The columns of a table that may be null; of a view, whose joins find nothing for some rows,
    all but those that a rollout always has. None for what is neither."""
    if name in TABLES:
        return {column.name for column in TABLES[name].columns if column.optional}
    if name not in VIEWS:
        return None
    of_rollout = {column.name for column in TABLES["rollouts"].columns if not column.optional}
    if name == "tokens":
        of_rollout -= {"text"}
    others = set(meanings(name)) - of_rollout - _NEVER_NULL
    return others


def describe(name: str, schema: pl.Schema) -> pl.DataFrame:
    """A row a column: name, type, nullable (null where it is not known), description."""
    import polars as pl

    about, may_be_null = meanings(name), nullable(name)
    return pl.DataFrame(
        {
            "column": list(schema),
            "type": [str(kind) for kind in schema.values()],
            "nullable": [None if may_be_null is None else c in may_be_null for c in schema],
            "description": [about.get(c) for c in schema],
        },
        schema={"column": pl.String, "type": pl.String, "nullable": pl.Boolean,
                "description": pl.String},
    )  # fmt: skip
