"""Prompts: a sentence and a clip as token ids and pixels, by the checkpoint's own processor.

The processor runs once for a clip and each sentence; whoever needs the pixels of several sentences
of one video takes them once, because prompts of a clip share their `vision`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from opd_core import torchvision_guard
from opd_core.adapter_folder import base_folder, is_adapter
from opd_core.extensions import TEMPLATES
from opd_core.model.architectures import Architecture, architecture_in
from opd_core.model.kept import kept_while_untouched
from opd_core.model.model_config import opened_config
from opd_core.model.positions import PositionRule
from opd_core.model.vision_input import VisionInput
from opd_core.spans.answer_reader import THOUGHT
from opd_core.templates.named import ask
from opd_core.types import VideoOPDError
from opd_core.video.clip import VideoClip
from opd_core.video.reader import VideoError

TIMELENS = TEMPLATES["timelens"].text


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    token_ids: tuple[int, ...]
    vision: VisionInput
    text: str = ""
    """Before the video's tokens were put in: what vLLM is given,"""
    clip: VideoClip | None = None
    """with these frames."""


def shared_vision(prompts: Sequence[EncodedPrompt]) -> VisionInput:
    """The one clip of prompts that share a tree's root. Raises ValueError when they are of several:
    equal tokens and an equal grid do not make them the same clip."""
    vision = prompts[0].vision
    if any(prompt.vision is not vision for prompt in prompts):
        raise ValueError("prompts of several clips cannot share one prefix")
    return vision


class PromptEncoder:
    """Encodes prompts with the processor of one checkpoint folder."""

    def __init__(self, folder: Path, template: str = TIMELENS) -> None:
        self.processor = load_processor(folder)
        self.folder = folder
        self._template = template

    @property
    def tokenizer(self) -> Any:
        return self.processor.tokenizer

    @property
    def max_positions(self) -> int:
        """Tokens that the checkpoint's model has positions for."""
        text = self.architecture.text_settings(self._model_config)
        return int(text.max_position_embeddings)

    @cached_property
    def architecture(self) -> Architecture:
        """The family of the checkpoint's model. Raises `VideoOPDError` for one without a record."""
        return architecture_in(self._model_folder)

    @property
    def vocabulary_size(self) -> int:
        """Rows of the model's `lm_head`."""
        return int(self.architecture.text_settings(self._model_config).vocab_size)

    @property
    def video_token_id(self) -> int:
        """The token that stands for a frame's pixels."""
        return int(getattr(self._model_config, self.architecture.video_token_id))

    @property
    def positions(self) -> PositionRule:
        """The rule by which the checkpoint's model places the tokens of a prompt."""
        return PositionRule.of(self._model_config)

    @property
    def _model_config(self) -> object:
        return opened_config(self._model_folder)

    @cached_property
    def _model_folder(self) -> Path:
        """Where config.json is: an adapter's base has it."""
        return base_folder(self.folder) if is_adapter(self.folder) else self.folder

    def encode(self, clip: VideoClip, queries: list[str]) -> list[EncodedPrompt]:
        """One prompt a query, all sharing one `vision`."""
        family = self.architecture
        prompts: list[EncodedPrompt] = []
        vision: VisionInput | None = None
        # vLLM reads do_sample_frames from the metadata, transformers takes it as an argument.
        metadata = {k: v for k, v in clip.metadata.items() if k != "do_sample_frames"}
        for query in queries:
            text = self.chat_text(query)
            batch = self.processor(
                text=[text],
                videos=[torch.from_numpy(clip.frames).permute(0, 3, 1, 2)],
                video_metadata=[dict(metadata)],
                do_resize=False,
                do_sample_frames=False,
                return_tensors="pt",
            )
            stated = batch.get(family.second_per_grid)
            seconds = None if stated is None else float(torch.as_tensor(stated)[0])
            if seconds is not None:
                check_even(clip, seconds)
            if vision is None:
                t, h, w = (int(n) for n in batch[family.grid][0])
                vision = VisionInput(batch[family.pixels], (t, h, w), seconds)
            token_ids = tuple(batch["input_ids"][0].tolist())
            prompts.append(EncodedPrompt(token_ids, vision, text, clip))
        return prompts

    def chat_text(self, query: str) -> str:
        """The chat with one video placeholder, up to where the assistant begins."""
        content = [
            {"type": "video"},
            {"type": "text", "text": ask(self._template, query)},
        ]
        text: str = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        return text

    def decode(self, token_ids: list[int] | tuple[int, ...]) -> str:
        """An answer as text, with the thought's tag where the chat template has opened one for it:
        else a thought that was cut off would look like an answer."""
        text: str = self.tokenizer.decode(list(token_ids), skip_special_tokens=True)
        return (self.opened_thought + text).strip()

    @cached_property
    def opened_thought(self) -> str:
        """`<think>` where prompts end in it (the Thinking models' do), else nothing."""
        return THOUGHT if self.chat_text("").rstrip().endswith(THOUGHT) else ""


def check_even(clip: VideoClip, second_per_grid: float) -> None:
    """Raises `VideoError` where a model that is told no times, only seconds a step, would take a
    frame to be more than a step away from where it is."""
    if clip.unevenness > second_per_grid:
        raise VideoError(
            f"a frame is {clip.unevenness:.1f} s away from where this model expects it, which "
            "counts frames as evenly spread (the picture starts late, or its frame rate varies "
            "much); re-encode the video with a constant one"
        )


def load_processor(folder: Path) -> Any:
    """The processor of a checkpoint folder, which all of this process share; raises `VideoOPDError`
    when there is none."""
    torchvision_guard.install()
    if not folder.is_dir():
        raise VideoOPDError(f"there is no model folder at {folder}; correct the path in the config")
    try:
        return _opened_processor(folder)
    except (OSError, ValueError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise VideoOPDError(
            f"{folder} has no usable processor ({first_line}); copy the processor files of the "
            "base checkpoint into it"
        ) from None


@kept_while_untouched
def _opened_processor(folder: Path) -> object:
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(folder, local_files_only=True)


def processor_hash(processor: Any) -> str:
    """16 hex digits over everything a processor does: its configuration, vocabulary, template."""
    digest = hashlib.sha256()
    digest.update(processor.to_json_string().encode())
    digest.update((processor.chat_template or "").encode())
    digest.update(processor.tokenizer.backend_tokenizer.to_str().encode())
    return digest.hexdigest()[:16]
