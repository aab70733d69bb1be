"""What a row's chat says: who writes what, which video is in it, which sentence is asked about.

A chat is a list (or its JSON) of `{"role", "content"}` (ms-swift, verl) or `{"from", "value"}`
(LLaMA-Factory), a content being text or a list of parts `{"type", "text" | "video"}`; or one text,
the user's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from opd_core.annotations.fields import BadAnnotationError, as_object, parse_json

_USERS, _ASSISTANTS = {"user", "human"}, {"assistant", "gpt"}
_QUOTED = (
    re.compile(
        r"\b(?:sentence|event|query)\b[^\"'“]{0,40}'(.+?)'(?=\s*[,.?]|\s+in the|\s*$)", re.S
    ),
    re.compile(r"\b(?:sentence|event|query)\b[^\"'“]{0,40}\"(.+?)\"", re.S),
    re.compile(r"\b(?:sentence|event|query)\b[^\"'“]{0,40}“(.+?)”", re.S),
)
_VIDEO_TAG = "<video>"


@dataclass(frozen=True, slots=True)
class Chat:
    messages: tuple[tuple[str, tuple[Any, ...]], ...]
    """(role, parts) of each message."""

    @classmethod
    def of(cls, value: Any) -> Chat:
        if value is None:
            return cls(())
        if isinstance(value, str):
            try:
                value = parse_json(value.encode(errors="replace"), "the chat")
            except BadAnnotationError:
                value = [{"role": "user", "content": value}]
        if not isinstance(value, list):
            raise BadAnnotationError("the chat is not a list of messages")
        messages = []
        for message in value:
            message = as_object(message, "a message of the chat")
            role = message.get("role", message.get("from"))
            content = message.get("content", message.get("value"))
            parts = tuple(content) if isinstance(content, list) else (content,)
            messages.append((str(role), parts))
        return cls(tuple(messages))

    def video(self) -> Any:
        """The video of the first part that has one."""
        parts = (part for _, parts in self.messages for part in parts if isinstance(part, dict))
        return next((part for part in parts if part.get("video")), None)

    def questions(self) -> list[str]:
        return self._texts(_USERS)

    def answers(self) -> list[str]:
        return self._texts(_ASSISTANTS)

    def _texts(self, roles: set[str]) -> list[str]:
        parts = [part for role, parts in self.messages if role in roles for part in parts]
        texts = [part.get("text") if isinstance(part, dict) else part for part in parts]
        return [text for text in texts if isinstance(text, str)]


def is_prompt(text: str) -> bool:
    """Whether a model could be asked this as it stands: it says where the video goes."""
    return _VIDEO_TAG in text


def quoted_sentence(text: str) -> str | None:
    """The text in quotes after `sentence` or `event`, as TimeLens and Time-R1 prompt."""
    matches = (pattern.search(text) for pattern in _QUOTED)
    return next((match.group(1) for match in matches if match), None)
