"""Hours of a round of the paper on the card that was measured: 2,500 examples, one rollout each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from flows.bench.interleaved import Row

EXAMPLES = 2500


def hours_rows(known: Mapping[str, Row]) -> Iterator[Row]:
    return iter(())
