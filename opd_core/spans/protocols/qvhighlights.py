"""QVHighlights' protocol: the best of the spans counts, where a sentence is true several times."""

from __future__ import annotations

from opd_core.spans.protocols.protocol import Protocol

PROTOCOL = Protocol("read as the prompt asks, no rounding, best window, IoU >= m")
