"""`hf`: the trainer's own forward pass, which every machine has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from opd_core.extensions import Engine, Quantise

if TYPE_CHECKING:
    from opd_core.config.load import Config
    from opd_core.engines.hf.sampling import HFEngine
    from opd_core.prompts.batches import ExampleEncoder


@contextmanager
def opened(
    config: Config,
    folder: Path,
    dtype: str,
    encoder: ExampleEncoder,
    longest: int,
    quantise: Quantise = "none",
) -> Iterator[HFEngine]:
    """The checkpoint in `folder` as a tree model; the teacher's over several processes, where
    `cluster.teacher_shards` says so."""
    from opd_core.engines.hf.sampling import HFEngine
    from opd_core.model.tree_model import TreeModel, choose_device, load_model

    tokenizer, update = encoder.prompts.tokenizer, config.update
    shards = 1 if config.cluster is None else config.cluster.teacher_shards
    if shards > 1 and folder == config.teacher.path:
        from opd_core.engines.hf.sharded import opened_sharded

        with opened_sharded(config, folder, dtype, tokenizer, shards) as engine:
            yield engine
        return
    weights = load_model(folder, dtype, choose_device(config.machine.device), quantise)
    model = TreeModel(weights, tokenizer, update.completion_rows_per_chunk)
    yield HFEngine(model, tokenizer, max_scored_per_pack=update.max_tokens_per_pack)


def scorer(config: Config) -> tuple[str, str]:
    """Itself with how it rounds what it quantises, and the attention of prefix trees."""
    from opd_core.model.quantised import described
    from opd_core.model.tree_attention import NAME
    from opd_core.model.tree_model import choose_device

    teacher, named = config.teacher, f"hf, transformers {version('transformers')}"
    if teacher.quantise != "none":
        device = choose_device(config.machine.device)
        named += f", {described(teacher.quantise, device, teacher.dtype)}"
    return named, NAME


def repeats() -> str:
    """The version of the libraries that compute."""
    from opd_core.engines.hf.sampling import HFEngine

    return HFEngine.version


ENGINE = Engine(
    about="transformers on prefix trees: the trainer's own forward pass, nothing more to install",
    opened=opened,
    scorer=scorer,
    whole_distribution=True,
    is_the_trainer=True,
    repeats=repeats,
    quantises=("fp8", "int4"),
    opened_quantised=opened,
)
