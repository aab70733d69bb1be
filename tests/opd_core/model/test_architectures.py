"""Each record holds of the very models it describes, and is the only place that does.

A record that is wrong in one field fails here, before anything computes with it.
"""

from __future__ import annotations

import ast
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from opd_core.model.architectures import (
    ARCHITECTURES,
    QWEN3_VL,
    QWEN3_VL_MOE,
    THIS_FILE,
    Architecture,
    architecture_in,
    architecture_of,
)
from opd_core.model.checkpoint import check_checkpoint, save_checkpoint
from opd_core.model.lm_head import load_lm_head
from opd_core.model.tree_model import load_model
from opd_core.types import VideoOPDError
from opd_core.update.trainable import language_modules
from tests.opd_core.model.test_tree_model import qwen

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module", params=sorted(ARCHITECTURES))
def family(request: Any) -> Architecture:
    return ARCHITECTURES[request.param]


@pytest.fixture(scope="module")
def model(family: Architecture) -> Any:
    return qwen(family.model_type)


@pytest.fixture(scope="module")
def folder(family: Architecture, model: Any, tmp_path_factory: Any) -> Path:
    place: Path = tmp_path_factory.mktemp(family.model_type) / "saved"
    save_checkpoint(model, place)
    return place


def test_the_paths_lead_to_what_they_say(family: Architecture, model: Any) -> None:
    assert family.module(model, family.lm_head) is model.get_output_embeddings()
    assert family.module(model, family.embedding) is model.get_input_embeddings()
    layers = family.module(model, family.layers)
    assert isinstance(layers, torch.nn.ModuleList)
    assert len(layers) == family.text_settings(model.config).num_hidden_layers
    assert family.module(model, family.backbone) is model.base_model
    for path in (family.vision, *family.mergers):
        assert sum(p.numel() for p in family.module(model, path).parameters()) > 0
    assert isinstance(getattr(model.config, family.video_token_id), int)
    assert family.vision_settings(model.config).spatial_merge_size == 2


def test_every_weight_is_of_language_or_of_vision(family: Architecture, model: Any) -> None:
    names = [name for name, _ in model.named_parameters()]
    vision = {n for n in names if family.is_vision(n)}
    assert vision and {n for n in names if n not in vision} == {
        n for n in names if family.is_text(n) or n.startswith(f"{family.lm_head}.")
    }
    trained = qwen(family.model_type)
    family.freeze_vision(trained)
    assert {n for n, p in trained.named_parameters() if not p.requires_grad} == vision


def test_stored_names_are_told_apart_too(family: Architecture, folder: Path) -> None:
    stored = load_file(folder / "model.safetensors")
    shares = [family.is_vision(name) for name in stored]
    assert 0 < sum(shares) < len(shares)
    assert load_lm_head(folder, "float32").equal(qwen(family.model_type).lm_head.weight)


def test_the_classes_are_of_that_model_type(family: Architecture, folder: Path) -> None:
    assert family.load_class().config_class.model_type == family.model_type
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    assert architecture_of(config) is architecture_in(folder) is family
    assert json.loads((folder / "config.json").read_text())["architectures"] == [family.model_class]


def test_vllm_knows_the_class_and_where_its_vision_is(family: Architecture) -> None:
    vllm = pytest.importorskip("vllm")
    assert family.model_class in vllm.ModelRegistry.get_supported_archs()


def test_experts_are_where_the_record_says(family: Architecture, model: Any) -> None:
    fused = {n for n, p in model.named_parameters() if p.ndim == 3 and family.is_text(n)}
    if family.experts is None:
        assert not fused
        return
    assert fused and fused == {n for n, _ in model.named_parameters() if family.experts.holds(n)}
    layer = family.module(model, family.layers)[0]
    assert layer.get_submodule(family.experts.router).weight.shape[0] == len(
        layer.get_submodule(family.experts.module).get_parameter(family.experts.gate_up)
    )


# --- saving and opening ------------------------------------------------------------------------


def test_saved_and_opened_again_it_is_the_same(
    family: Architecture, model: Any, folder: Path
) -> None:
    check_checkpoint(folder)
    opened = dict(load_model(folder, "float32").named_parameters())
    for name, parameter in model.named_parameters():
        assert opened[name].equal(parameter), name


def moe(**text: Any) -> Any:
    """Untrained: 48 wide, so that an expert of 24 has square matrices."""
    config = qwen("qwen3_vl_moe").config
    for name, value in text.items():
        setattr(config.text_config, name, value)
    torch.manual_seed(1)
    return QWEN3_VL_MOE.load_class()(config)


@pytest.mark.parametrize("inner", [40, 24, 48])
def test_experts_are_written_as_they_are_published(tmp_path: Path, inner: int) -> None:
    """[E, D, 2I] and [E, I, D], also of a model that was opened from such files, and read back."""
    first = moe(moe_intermediate_size=inner)
    save_checkpoint(first, tmp_path / "1")
    again = load_model(tmp_path / "1", "float32")
    save_checkpoint(again, tmp_path / "2")
    for folder in (tmp_path / "1", tmp_path / "2"):
        stored = load_file(folder / "model.safetensors")
        experts = "model.language_model.layers.0.mlp.experts"
        ours = first.model.language_model.layers[0].mlp.experts
        for name, square in (("gate_up_proj", 2 * inner == 48), ("down_proj", inner == 48)):
            tensor = getattr(ours, name)
            # Where no one can tell, transformers takes what it finds as its own form.
            expected = tensor if square else tensor.transpose(1, 2)
            assert stored[f"{experts}.{name}"].equal(expected)
    for name, parameter in load_model(tmp_path / "2", "float32").named_parameters():
        assert parameter.equal(dict(first.named_parameters())[name]), name


def test_experts_that_are_missing_or_of_another_size(tmp_path: Path) -> None:
    save_checkpoint(moe(), tmp_path / "whole")
    name = "model.language_model.layers.2.mlp.experts.down_proj"
    for tensor, sentence in ((None, f"lacks {name}"), (torch.zeros(5, 7, 48), "in another shape")):
        folder = Path(shutil.copytree(tmp_path / "whole", tmp_path / sentence.split()[0]))
        weights = load_file(folder / "model.safetensors")
        weights.pop(name)
        if tensor is not None:
            weights[name] = tensor
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(VideoOPDError, match=sentence):
            check_checkpoint(folder)


# --- LoRA --------------------------------------------------------------------------------------


def test_lora_adapts_linear_layers_of_the_language_model_only(
    family: Architecture, model: Any
) -> None:
    names = language_modules(model, family, family.lora_modules)
    assert {n.rsplit(".", 1)[-1] for n in names} == set(family.lora_modules)
    for name in names:
        assert isinstance(model.get_submodule(name), torch.nn.Linear)
        assert not family.is_vision(name)


@pytest.mark.parametrize("wanted", ["experts", "gate_up_proj", "gate", "q_projection"])
def test_experts_and_routers_are_no_layers_of_lora(wanted: str) -> None:
    with pytest.raises(VideoOPDError) as error:
        language_modules(qwen("qwen3_vl_moe"), QWEN3_VL_MOE, ("q_proj", wanted))
    sentence = str(error.value)
    assert f"names {wanted!r}" in sentence and "k_proj" in sentence and "\n" not in sentence
    assert "the experts of qwen3_vl_moe" in sentence and "remove [update.lora]" in sentence


def test_a_dense_model_has_nothing_to_say_of_experts() -> None:
    with pytest.raises(VideoOPDError, match="'qkv', which is no linear layer") as error:
        language_modules(qwen("qwen3_vl"), QWEN3_VL, ("qkv",))
    assert "expert" not in str(error.value)


# --- families without a record -----------------------------------------------------------------


@pytest.mark.parametrize("model_type", ["llava", "qwen3_5", "qwen3_vl_text", "", None, 7])
def test_an_unknown_family_is_told_which_are_known(tmp_path: Path, model_type: object) -> None:
    save_checkpoint(qwen("qwen3_vl"), tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": model_type}))
    for opening in (architecture_in, check_checkpoint, lambda f: load_model(f, "float32")):
        with pytest.raises(VideoOPDError) as error:
            opening(tmp_path)
        sentence = str(error.value)
        assert str(path) in sentence and repr(model_type) in sentence and "\n" not in sentence
        assert all(known in sentence for known in ARCHITECTURES) and THIS_FILE in sentence
    assert (ROOT / THIS_FILE).is_file()


@pytest.mark.parametrize("content", ["", "[]", "{}", "nothing"])
def test_a_config_that_names_no_family(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(VideoOPDError, match="no readable config.json"):
        architecture_in(tmp_path)


# --- nowhere else ------------------------------------------------------------------------------

OF_A_FAMILY = {
    "visual", "language_model", "embed_tokens", "text_config", "vision_config",
    "pixel_values_videos", "video_grid_thw", "second_per_grid_ts", "<|video_pad|>", *ARCHITECTURES,
    *(a.model_class for a in ARCHITECTURES.values()),
}  # fmt: skip
MAKES_ONE = {
    "opd_core/tinyworld/models.py",
    "opd_core/plan/published.py",
    "flows/bench/drawn.py",
    "flows/bench/shapes.py",
    "flows/bench/trees.py",
}
"""Write a config, or hand a model its inputs: of a family that they choose."""


def said(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Attributes and strings of code, docstrings aside."""
    prose = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr, node.lineno
        elif isinstance(node, ast.Constant) and id(node) not in prose:
            yield str(node.value), node.lineno


def test_only_the_record_knows_what_a_family_is_made_of() -> None:
    offences = [
        f"{path.relative_to(ROOT)}:{line} {word}"
        for package in ("opd_core", "storage", "flows")
        for path in sorted((ROOT / package).rglob("*.py"))
        if str(path.relative_to(ROOT)) not in {THIS_FILE, *MAKES_ONE}
        for word, line in said(ast.parse(path.read_text()))
        if not OF_A_FAMILY.isdisjoint(word.replace("<|", ".<|").split("."))
    ]
    assert offences == []
