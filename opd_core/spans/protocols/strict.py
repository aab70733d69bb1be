"""Our own protocol, which the summaries of rounds tell: an IoU of exactly m does not reach it."""

from __future__ import annotations

from opd_core.spans.protocols.protocol import Protocol

PROTOCOL = Protocol("read as the prompt asks, no rounding, best window, IoU > m", comparison=">")
