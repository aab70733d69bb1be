"""Which sentences can only be answered by listening: TimeLens' rule, by keyword.

A model that sees frames cannot ground "we hear a bell". TimeLens leaves such training queries out
by nine whole words; so does this, with one difference: TimeLens splits at blanks, and so keeps
"a dog is heard." for its full stop; here punctuation does not count. It is a crude rule ("a sound
sleep" goes, "she sings" stays), which is why it is off unless asked for.
"""

from __future__ import annotations

import re

AUDIO_WORDS = frozenset(
    {"hear", "heard", "hears", "hearing", "sound", "sounded", "sounds", "sounding", "audio"}
)
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")


def audio_word(query: str) -> str | None:
    """The first word that makes it an audio query, or None.

    >>> audio_word("A bell is heard.")
    'heard'
    """
    return next((word for word in _WORD.findall(query.lower()) if word in AUDIO_WORDS), None)
