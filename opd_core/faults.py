"""What may be at fault where something could not be used: the `kind` of a quarantine row.

The kind decides how long that lasts. An unreadable file is an accident of the moment; what a
sentence holds is so for ever. Every stage names one of these.
"""

from __future__ import annotations

ANNOTATION = "annotation"
"""It makes no example: what import finds in the annotation files."""
NO_FILE = "no file"
"""The video is not there, or the system cannot read it: the disk, the network, the rights."""
DECODER_LOST = "decoder lost"
"""The decoder hung or crashed on it."""
VIDEO = "video"
"""What is in the file: truncated, no pictures, ..."""
SENTENCE = "sentence"
"""It holds a control token."""
DURATION = "duration"
"""The annotated length of the video is not the file's."""
TOO_LONG = "too long"
"""Prompt and answer do not fit the model, or the engine as it was opened."""
PROCESSOR = "processor"
"""The checkpoint's processor raised on it."""
ENGINE = "engine"
"""The engine's answer is not one to the question."""
SCORE = "score"
"""The teacher's log-probs are no numbers."""
WORKER_LOST = "worker lost"
"""The process that computed it ended, time and again."""

NEXT_ROUND = frozenset({NO_FILE})
"""Tried again in any later round that draws it."""
ONE_MORE_ROUND = frozenset({DECODER_LOST, WORKER_LOST})
"""Tried again, and given up when it happens in a second round: each try costs its timeout, or a
worker."""
OF_THE_SETTINGS = frozenset({TOO_LONG, PROCESSOR})
"""Tried again under another config."""
