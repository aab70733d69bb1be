"""Why one sentence about one clip cannot be asked: found before, in and after the processor.

What a processor raises on one example is that example's fault as long as the processor works on
others. Which of the two it is, is tried: a plain sentence about the same clip, then one about a
grey clip of ours. Where even that fails it is the processor, and nothing may be set aside for it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from opd_core import faults
from opd_core.annotations.control_tokens import control_fault, control_tokens
from opd_core.model.vision_input import VisionInput
from opd_core.prompts.encoder import EncodedPrompt, PromptEncoder
from opd_core.types import VideoOPDError
from opd_core.video.clip import VideoClip
from opd_core.video.reader import VideoError

PLAIN = "a person opens a door"


class UnusableExample(Exception):
    """str(error) is the reason for `quarantine` (one sentence)."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Room:
    """How many tokens a prompt and its answer may have together."""

    tokens: int
    new_tokens: int
    """Those of `tokens` that the answer may take."""
    given_by: str
    """The setting or the model that says so, and what to change."""

    def check(self, prompt_tokens: int) -> None:
        if prompt_tokens + self.new_tokens > self.tokens:
            raise UnusableExample(
                faults.TOO_LONG,
                f"its prompt and answer are {prompt_tokens:,} + {self.new_tokens:,} tokens and "
                f"there is room for {self.tokens:,} ({self.given_by})",
            )


class CheckedPrompts:
    """Encodes sentences one by one; all of a clip share one `vision`."""

    def __init__(self, prompts: PromptEncoder) -> None:
        self._prompts = prompts
        self._control = control_tokens(prompts.tokenizer, str(prompts.processor.chat_template))
        self._has_worked = False

    def check_sentence(self, query: str) -> None:
        """Raises `UnusableExample` for a sentence with a control token."""
        if fault := control_fault(query, self._control):
            raise UnusableExample(faults.SENTENCE, fault)

    def encode(self, clip: VideoClip, query: str, vision: VisionInput | None) -> EncodedPrompt:
        """One prompt; with the `vision` of an earlier one of the same clip, where there is one.

        Raises `UnusableExample` with what the processor raised, and `VideoOPDError` where the
        processor does not work on anything.
        """
        try:
            prompt = self._encode(clip, query)
        except (MemoryError, torch.OutOfMemoryError, VideoOPDError):
            raise
        except VideoError as error:  # of a clip that this model cannot be told the times of
            raise UnusableExample(faults.VIDEO, str(error)) from None
        except Exception as error:  # the libraries raise all kinds
            raise self._blame(clip, error) from None
        self._has_worked = True
        return prompt if vision is None else replace(prompt, vision=vision)

    def _encode(self, clip: VideoClip, query: str) -> EncodedPrompt:
        (prompt,) = self._prompts.encode(clip, [query])
        processor = self._prompts.processor
        t, h, w = prompt.vision.grid_thw
        expected = t * h * w // processor.video_processor.merge_size**2
        places = prompt.token_ids.count(processor.video_token_id)
        if places != expected:
            raise ValueError(f"the prompt has {places} places for {expected} tokens of the video")
        return prompt

    def _blame(self, clip: VideoClip, error: Exception) -> UnusableExample:
        raised = f"{type(error).__name__}: {first_line(error)}"
        if self._works_on(clip):
            return UnusableExample(faults.PROCESSOR, f"the processor raised {raised}")
        if self._has_worked or self._works_on(_grey_clip()):
            reason = f"the processor raised {raised}, as it does for any sentence about this video"
            return UnusableExample(faults.PROCESSOR, reason)
        raise VideoOPDError(
            f"the processor of {self._prompts.folder} fails on every example ({raised}); correct "
            "the processor files of the checkpoint or the installed transformers (nothing was "
            "recorded about the examples)"
        )

    def _works_on(self, clip: VideoClip) -> bool:
        try:
            self._encode(clip, PLAIN)
        except Exception:  # whatever it is, it has been told by then
            return False
        return True


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or ["no message"]
    return lines[0][:300]


def _grey_clip() -> VideoClip:
    frames = np.full((4, 64, 64, 3), 128, dtype=np.uint8)
    return VideoClip.of(frames, (0, 1, 2, 3), 2.0, 4, "pyav")
