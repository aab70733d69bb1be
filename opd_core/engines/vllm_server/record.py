"""`vllm_server`: how it is reached for one stage, and what its rows say of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from opd_core.engines.vllm_server.section import VLLMServerSection
from opd_core.extensions import Engine

if TYPE_CHECKING:
    from opd_core.config.load import Config
    from opd_core.engines.vllm_server.engine import ServerEngine
    from opd_core.prompts.batches import ExampleEncoder


@contextmanager
def opened(
    config: Config, folder: Path, dtype: str, encoder: ExampleEncoder, longest: int
) -> Iterator[ServerEngine]:
    """The server of the config, which has to be there."""
    from opd_core.engines.vllm_server.engine import ServerEngine

    yield ServerEngine(config, _settings(config), folder, dtype, encoder)


def scorer(config: Config) -> tuple[str, str]:
    """The version of the vLLM there, that it is remote, and whether its weights were compared."""
    from opd_core.engines.vllm_server.connection import Connection
    from opd_core.engines.vllm_server.engine import has_weights, served

    settings = _settings(config)
    connection = Connection(settings)
    model, _ = served(connection, settings)
    compared = settings.compare and has_weights(config.teacher.path)
    proven = "compared with its weights" if compared else "not compared with weights"
    return (
        f"vllm_server, vllm {connection.version()}, remote {model}",
        f"{proven}, its own attention",
    )


def identity(config: Config) -> str:
    """What stands for the hash of weights that are not here: no hash, but whose they are said to
    be."""
    name = _settings(config).model or config.teacher.path.name
    return f"remote:{name.replace('+', '%2B')}"


def _settings(config: Config) -> VLLMServerSection:
    settings: VLLMServerSection = config.of(ENGINE_NAME)
    return settings


ENGINE_NAME = "vllm_server"
ENGINE = Engine(
    about="a vLLM server behind an address, whose prompts and scores are compared with ours",
    opened=opened,
    settings=VLLMServerSection,
    scorer=scorer,
    identity=identity,
)
