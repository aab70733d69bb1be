"""Opens the engine that the config names, for one stage, and closes it after."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from opd_core.config.load import Config
from opd_core.engines.base import OpenedEngine
from opd_core.extensions import ENGINES, Engine, Quantise
from opd_core.types import VideoOPDError

if TYPE_CHECKING:
    from opd_core.prompts.batches import ExampleEncoder
    from opd_core.prompts.faults import Room


@contextmanager
def opened_engine(
    config: Config,
    name: str,
    folder: Path,
    dtype: str,
    encoder: ExampleEncoder,
    longest: int | None = None,
    quantise: Quantise = "none",
) -> Iterator[OpenedEngine]:
    """An engine of the checkpoint in `folder`, for answers of at most `longest` tokens (None: as
    long as a policy is asked for).

    Raises `VideoOPDError` where what it needs is not installed.
    """
    engine = installed_engine(name)
    longest = longest_answer(config) if longest is None else longest
    if quantise == "none":
        opening = engine.opened(config, folder, dtype, encoder, longest)
    else:
        assert engine.opened_quantised is not None, "the config was held against it"
        opening = engine.opened_quantised(config, folder, dtype, encoder, longest, quantise)
    with opening as opened:
        if opened.name != name:  # which its rows and its settings go by
            raise VideoOPDError(
                f"the engine {name!r} opens one that calls itself {opened.name!r}; name the two "
                "alike in its package"
            )
        yield opened


def installed_engine(name: str) -> Engine:
    """Raises `VideoOPDError` where what it needs is not installed."""
    engine = ENGINES[name]
    if engine.needs and engine.installed() is None:
        raise VideoOPDError(
            f"an engine of the config is {name!r}, which is not installed here; install the "
            f"package ({', or '.join(engine.needs)}), or set the engine to 'hf'"
        )
    return engine


def room_for(
    config: Config,
    name: str,
    encoder: ExampleEncoder,
    new_tokens: int,
    opened_for: int | None = None,
) -> Room:
    """The tokens that the engine of a stage has room for, `new_tokens` of them for an answer.

    `opened_for`: the longest answer that it is opened for, where it does not sample.
    """
    from opd_core.prompts.faults import Room

    engine, model = ENGINES[name], encoder.prompts.max_positions
    if engine.room is not None:
        opened = engine.room(config, encoder, opened_for or longest_answer(config))
        if opened < model:
            return Room(opened, new_tokens, f"{engine.room_setting}, which may be raised")
    return Room(model, new_tokens, "max_position_embeddings of the model")


def longest_answer(config: Config) -> int:
    """Tokens of the longest answer that a policy is asked for."""
    return max(config.rollout.max_new_tokens, config.evaluate.max_new_tokens)
