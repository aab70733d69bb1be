"""Cards by name: memory, and what they compute and read a second, from their data sheets."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from opd_core.types import VideoOPDError


@dataclass(frozen=True, slots=True)
class Card:
    name: str
    memory: float
    """Bytes."""
    flops: float | None
    """A second, dense bfloat16; None: not known."""
    bandwidth: float | None
    """Bytes a second."""


CARDS = {
    card.name: card
    for card in (
        Card("A10", 24e9, 125e12, 600e9),
        Card("A40", 48e9, 149.7e12, 696e9),
        Card("A100-40", 40e9, 312e12, 1555e9),
        Card("A100", 80e9, 312e12, 2039e9),
        Card("B200", 180e9, 2250e12, 8000e9),
        Card("H100", 80e9, 989e12, 3350e9),
        Card("H200", 141e9, 989e12, 4800e9),
        Card("L4", 24e9, 121e12, 300e9),
        Card("L40S", 48e9, 362e12, 864e9),
        Card("RTX 3090", 24e9, 71e12, 936e9),
        Card("RTX 4090", 24e9, 165e12, 1008e9),
        Card("RTX 5090", 32e9, 209e12, 1792e9),
    )
}


def card(name: str) -> Card:
    """The card of that name. Raises `VideoOPDError` where it is not known."""
    wanted = name.casefold().replace(" ", "")
    for known in CARDS.values():
        if known.name.casefold().replace(" ", "") == wanted:
            return known
    near = difflib.get_close_matches(name, CARDS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known are: {', '.join(CARDS)}"
    raise VideoOPDError(f"--gpu {name!r} is not known; {hint} (or give --memory-gib)")


def card_of_device(device: str, memory: float) -> Card:
    """A card that is there, with the memory that it says it has; its speed is that of the longest
    name of `CARDS` that its own has, nearest in memory, or not known."""
    mine = device.casefold().replace(" ", "")

    def shared(known: Card) -> str:
        name = known.name.split("-")[0].casefold().replace(" ", "")
        return name if name in mine else ""

    alike = [known for known in CARDS.values() if shared(known)]
    if not alike:
        return Card(device, memory, None, None)
    known = min(alike, key=lambda k: (-len(shared(k)), abs(k.memory - memory)))
    return Card(device, memory, known.flops, known.bandwidth)
