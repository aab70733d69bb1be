"""How many tokens have passed through the models of this process: the only place that knows.

Counted where they pass (`tree_model.py`): a packed tree counts its video once, a decoding step one
token a row, rows that only fill up a batch included. Training counts its forward pass. An engine in
another process (vLLM) is not counted.
"""

from __future__ import annotations

_passed = 0


def passed(tokens: int) -> None:
    """`tokens` go through a model now."""
    global _passed
    _passed += tokens


def total() -> int:
    """Since the process began."""
    return _passed
