"""Whether the file that is there is the video that was annotated: by its length.

Spans are seconds of a video. Where the file is another cut of it, or runs at another speed, they
point at something else, and nothing but the length tells.
"""

from __future__ import annotations

TOLERANCE_SECONDS = 1.0
"""Annotated lengths are often rounded to a second, or are those of the sound track."""
TOLERANCE_SHARE = 0.02
"""Containers, counted frames and nominal lengths (150 s clips) are apart by less in public data;
a film that was sped up from 24 to 25 frames a second is 4 % shorter, and its spans are wrong."""


def duration_fault(annotated: float, real: float) -> str | None:
    """Why an annotation cannot be of a file of `real` seconds, or None."""
    if abs(annotated - real) <= max(TOLERANCE_SECONDS, TOLERANCE_SHARE * annotated):
        return None
    return (
        f"it is annotated for a video of {annotated:.6g} s and the file has {real:.6g} s: another "
        "cut, or another video"
    )
