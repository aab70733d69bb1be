"""A checkpoint folder is opened whole or refused, in every form that one comes in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from opd_core.adapter_folder import base_folder
from opd_core.model.checkpoint import check_checkpoint, open_checkpoint
from opd_core.model.published import merge_adapter
from opd_core.model.tree_model import load_model
from opd_core.model.weight_files import INDEX, SINGLE
from opd_core.types import VideoOPDError
from storage.hashes import weights_hash
from tests.opd_core.model.test_tree_model import qwen

Q_PROJ = "model.language_model.layers.1.self_attn.q_proj.weight"
HEAD, EMBEDDING = "lm_head.weight", "model.language_model.embed_tokens.weight"
Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module", params=["qwen3_vl", "qwen3_vl_moe", "qwen2_5_vl"])
def whole(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untied, in one file."""
    folder: Path = tmp_path_factory.mktemp(request.param) / "whole"
    qwen(request.param).save_pretrained(folder)
    return folder


@pytest.fixture
def copied(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "model"))


def changed(folder: Path, change: Callable[[Weights], Any], file: str = SINGLE) -> Path:
    weights = {name: tensor.clone() for name, tensor in load_file(folder / file).items()}
    change(weights)
    save_file(weights, folder / file, metadata={"format": "pt"})
    return folder


def stored_name(weights: Weights, name: str) -> str:
    """Qwen2.5-VL is saved as it was released, without `language_model`."""
    return name if name in weights else name.replace("model.language_model.", "model.")


def pop(weights: Weights, name: str = Q_PROJ) -> torch.Tensor:
    return weights.pop(stored_name(weights, name))


def in_shards(folder: Path, parts: int = 3) -> dict[str, str]:
    """As `save_pretrained` shards a large one; weight -> file."""
    weights = load_file(folder / SINGLE)
    names = sorted(weights)
    files = {n: f"model-{i % parts + 1:05d}-of-{parts:05d}.safetensors"
             for i, n in enumerate(names)}  # fmt: skip
    for file in set(files.values()):
        mine = {n: weights[n] for n in names if files[n] == file}
        save_file(mine, folder / file, metadata={"format": "pt"})
    (folder / SINGLE).unlink()
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return files


def refused(folder: Path) -> str:
    """By the check before a round and by the load itself, with the same sentence."""
    sentences = []
    for opening in (check_checkpoint, lambda f: load_model(f, "float32")):
        with pytest.raises(VideoOPDError) as error:
            opening(folder)
        sentences.append(str(error.value))
    assert sentences[0] == sentences[1]
    assert str(folder) in sentences[0] and "\n" not in sentences[0]
    return sentences[0]


# --- what is taken -----------------------------------------------------------------------------


def test_a_whole_one_is_what_was_saved(whole: Path) -> None:
    check_checkpoint(whole)
    loaded: Any = load_model(whole, "float32")
    stored = load_file(whole / SINGLE)
    state = dict(loaded.named_parameters())
    assert len(state) == len(stored)
    assert all(state[name].equal(stored[name]) for name in state if name in stored)
    assert not loaded.training


def test_shards_are_the_same_model(whole: Path, copied: Path) -> None:
    in_shards(copied)
    check_checkpoint(copied)
    one, many = load_model(whole, "float32"), load_model(copied, "float32")
    for (name, a), (_, b) in zip(one.named_parameters(), many.named_parameters(), strict=True):
        assert a.equal(b), name


def test_older_and_newer_names_are_the_same_weights(copied: Path) -> None:
    """Qwen2.5-VL was released with `visual.` and `model.layers.`; transformers 4.52 to 4.5x saved
    `model.visual.` and `model.language_model.layers.`."""
    if "qwen2_5" not in json.loads((copied / "config.json").read_text())["model_type"]:
        pytest.skip("Qwen3-VL never had other names")

    def rename(weights: Weights) -> None:
        for name in [n for n in weights if n != HEAD]:
            new = f"model.{name}" if name.startswith("visual.") else name
            new = new.replace("model.", "model.language_model.") if new == name else new
            weights[new] = weights.pop(name)

    before: Any = load_model(copied, "float32")
    assert Q_PROJ not in load_file(copied / SINGLE)
    after: Any = load_model(changed(copied, rename), "float32")
    assert Q_PROJ in load_file(copied / SINGLE)
    check_checkpoint(copied)
    for (name, a), (_, b) in zip(before.named_parameters(), after.named_parameters(), strict=True):
        assert a.equal(b), name


def test_a_tied_head_may_be_there_or_not(copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = True
    (copied / "config.json").write_text(json.dumps(config))

    def tie(weights: Weights) -> None:
        weights[HEAD] = weights[stored_name(weights, EMBEDDING)].clone()

    for change in (tie, lambda weights: weights.pop(HEAD)):
        model: Any = open_checkpoint(changed(copied, change), "float32")
        check_checkpoint(copied)
        assert model.lm_head.weight is model.model.language_model.embed_tokens.weight

    def untie(weights: Weights) -> None:
        weights[HEAD] = weights[stored_name(weights, EMBEDDING)] + 1

    with pytest.raises(VideoOPDError, match="differs from its embedding.*tie_word_embeddings"):
        load_model(changed(copied, untie), "float32")


# --- what is not -------------------------------------------------------------------------------


def test_a_missing_weight(copied: Path) -> None:
    assert f"lacks {Q_PROJ} (1 weight)" in refused(changed(copied, pop))


def test_an_untied_head_is_a_weight_like_any(copied: Path) -> None:
    assert f"lacks {HEAD} (1 weight)" in refused(changed(copied, lambda w: w.pop(HEAD)))


def test_many_missing_weights_are_counted_and_the_first_named(copied: Path) -> None:
    def remove(weights: Weights) -> None:
        for name in [n for n in weights if ".layers.2." in n]:
            del weights[name]

    before = len(load_file(copied / SINGLE))
    sentence = refused(changed(copied, remove))
    gone = before - len(load_file(copied / SINGLE))
    assert f"({gone} weights)" in sentence and f" and {gone - 3} more" in sentence


def test_an_unknown_weight(copied: Path) -> None:
    extra = "model.language_model.layers.9.self_attn.q_proj.weight"
    sentence = refused(changed(copied, lambda w: w.update({extra: torch.zeros(2, 2)})))
    assert f"has unknown {extra} (1 weight)" in sentence


def test_a_weight_of_another_shape(copied: Path) -> None:
    sentence = refused(
        changed(copied, lambda w: w.update({stored_name(w, Q_PROJ): torch.zeros(3, 5)}))
    )
    assert f"in another shape {Q_PROJ} (3x5 in the file, 48x48 in the model)" in sentence


def test_a_config_of_another_model(copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 2
    config["text_config"].pop("layer_types", None)
    (copied / "config.json").write_text(json.dumps(config))
    assert "has unknown model.language_model.layers.2" in refused(copied)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_no_number(copied: Path, value: float) -> None:
    def spoil(weights: Weights) -> None:
        weights[stored_name(weights, Q_PROJ)][3, 1] = value

    with pytest.raises(VideoOPDError, match=rf"{copied} has weights that are NaN .*{Q_PROJ}"):
        load_model(changed(copied, spoil), "bfloat16")


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_a_file_cut_short(copied: Path, keep: int) -> None:
    content = (copied / SINGLE).read_bytes()
    (copied / SINGLE).write_bytes(content[:keep])
    assert f"{copied / SINGLE} is not a whole safetensors file" in refused(copied)


def test_a_shard_is_gone_or_cut_short(copied: Path) -> None:
    files = sorted(set(in_shards(copied).values()))
    content = (copied / files[1]).read_bytes()
    (copied / files[1]).write_bytes(content[:-1])
    assert f"{copied / files[1]} is not a whole safetensors file" in refused(copied)
    (copied / files[1]).unlink()
    assert f"lacks {files[1]} that its weights should be in" in refused(copied)


def test_the_index_names_what_no_file_holds(copied: Path) -> None:
    files = in_shards(copied)
    name = next(name for name in files if name.endswith("layers.1.self_attn.q_proj.weight"))
    changed(copied, lambda w: w.pop(name), files[name])
    assert f"names a weight {name} in {files[name]}" in refused(copied)
    (copied / INDEX).write_text("{")
    assert "no readable index" in refused(copied)


def test_files_that_programs_would_read_differently(copied: Path) -> None:
    shutil.copyfile(copied / SINGLE, copied / "old.safetensors")
    assert "holds old.safetensors beside" in refused(copied)
    (copied / "old.safetensors").unlink()
    single = (copied / SINGLE).read_bytes()
    in_shards(copied)
    (copied / SINGLE).write_bytes(single)
    assert f"holds {SINGLE} beside the weights that {INDEX} stands for" in refused(copied)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin"])
def test_an_older_format(copied: Path, name: str) -> None:
    (copied / SINGLE).rename(copied / name)
    sentence = refused(copied)
    assert name in sentence and "save_pretrained" in sentence


def test_no_weights_no_config_no_folder(copied: Path) -> None:
    (copied / "config.json").rename(copied / "config.txt")
    assert "config.json" in refused(copied)
    (copied / "config.txt").rename(copied / "config.json")
    (copied / SINGLE).unlink()
    assert r"holds no *.safetensors" in refused(copied)
    assert "there is no model folder at" in refused(copied / "nowhere")


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"model_type": "qwen3_vl", "text_config": 3}']
)
def test_a_config_that_is_none(copied: Path, content: str) -> None:
    (copied / "config.json").write_text(content)
    refused(copied)


def test_quantised_weights(copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    quantised = config | {"quantization_config": {"quant_method": "fp8"}}
    (copied / "config.json").write_text(json.dumps(quantised))
    assert "is quantised" in refused(copied)
    (copied / "config.json").write_text(json.dumps(config))
    changed(copied, lambda w: w.update({stored_name(w, Q_PROJ): pop(w).to(torch.float8_e4m3fn)}))
    assert "is quantised (weights of F8_E4M3)" in refused(copied)


# --- adapters ----------------------------------------------------------------------------------

ADAPTER = "adapter_model.safetensors"


@pytest.fixture
def adapter(copied: Path) -> Path:
    """Of rank 4 on q and v of the language model, trained: no B is zero."""
    from peft import LoraConfig

    model: Any = load_model(copied, "float32")
    names = [n for n, _ in model.named_modules()
             if "language_model" in n and n.endswith(("q_proj", "v_proj"))]  # fmt: skip
    model.add_adapter(LoraConfig(r=4, lora_alpha=8, target_modules=names,
                                 base_model_name_or_path=str(copied)))  # fmt: skip
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    folder = copied.parent / "adapter"
    model.save_pretrained(folder)
    return folder


def test_an_adapter_is_applied(adapter: Path, copied: Path, tmp_path: Path) -> None:
    check_checkpoint(adapter)
    with_it: Any = load_model(adapter, "float32")
    merged: Any = load_model(merge_adapter(adapter, tmp_path / "merged", "float32"), "float32")
    base: Any = load_model(copied, "float32")
    layer = with_it.get_submodule(Q_PROJ.removesuffix(".weight"))
    added = layer.get_delta_weight("default")
    assert added.abs().max() > 0.01
    weights = dict(base.named_parameters())[Q_PROJ] + added
    assert torch.allclose(dict(merged.named_parameters())[Q_PROJ], weights, atol=1e-6)


def refused_adapter(folder: Path, target: Path) -> str:
    sentence = refused(folder)
    with pytest.raises(VideoOPDError) as error:
        merge_adapter(folder, target, "float32")
    assert str(error.value) == sentence, "vLLM is served no other"
    return sentence


def test_adapter_keys_that_fit_no_layer(adapter: Path, tmp_path: Path) -> None:
    def rename(weights: Weights) -> None:
        for name in list(weights):
            weights[name.replace("language_model", "decoder")] = weights.pop(name)

    sentence = refused_adapter(changed(adapter, rename, ADAPTER), tmp_path / "merged")
    assert "lacks model.language_model" in sentence
    assert "decoder.layers" in sentence[sentence.index("has unknown") :]


def test_a_configured_module_without_its_weights(adapter: Path, tmp_path: Path) -> None:
    changed(adapter, lambda w: w.pop(sorted(w)[0]), ADAPTER)
    assert "lora_A.default.weight (1 weight)" in refused_adapter(adapter, tmp_path / "merged")


def test_an_adapter_of_another_rank(adapter: Path, tmp_path: Path) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"r": 8}))
    assert "in another shape" in refused_adapter(adapter, tmp_path / "merged")


def test_an_adapter_whose_modules_its_base_has_not(adapter: Path, tmp_path: Path) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    modules = [name.replace("layers.0", "layers.7") for name in config["target_modules"]]
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"target_modules": modules}))
    refused_adapter(adapter, tmp_path / "merged")
    (adapter / "adapter_config.json").write_text(
        json.dumps(config | {"target_modules": ["no_such_layer"]})
    )
    assert "no_such_layer" in refused_adapter(adapter, tmp_path / "merged")


def test_an_adapter_without_its_base(adapter: Path, copied: Path, tmp_path: Path) -> None:
    copied.rename(tmp_path / "moved")
    sentence = refused_adapter(adapter, tmp_path / "merged")
    assert str(copied) in sentence and "base_model_name_or_path" in sentence


@pytest.mark.parametrize("named", ["absolute", "beside the adapter", "from this process's folder"])
def test_a_base_is_found_where_its_weights_are_hashed(
    adapter: Path, copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    expected = weights_hash(adapter)
    file = adapter / "adapter_config.json"
    name = str(copied)
    if named == "beside the adapter":
        name = f"../{copied.name}"
    elif named == "from this process's folder":
        (tmp_path / "models").mkdir()
        copied = copied.rename(tmp_path / "models" / "base")
        name = "models/base"
        monkeypatch.chdir(tmp_path)
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"base_model_name_or_path": name}))
    assert base_folder(adapter).resolve() == copied.resolve()
    assert weights_hash(adapter) == expected


def test_an_adapter_that_is_damaged(adapter: Path, tmp_path: Path) -> None:
    content = (adapter / ADAPTER).read_bytes()
    (adapter / ADAPTER).write_bytes(content[:-4])
    assert "not a whole safetensors file" in refused_adapter(adapter, tmp_path / "merged")
    (adapter / ADAPTER).rename(adapter / "adapter_model.bin")
    assert "adapter_model.bin, an older format" in refused_adapter(adapter, tmp_path / "merged")
    (adapter / "adapter_config.json").write_text("{}")
    (adapter / "adapter_model.bin").rename(adapter / ADAPTER)
    (adapter / ADAPTER).write_bytes(content)
    assert "names no base model" in refused_adapter(adapter, tmp_path / "merged")


def test_an_adapter_that_is_no_number(adapter: Path, tmp_path: Path) -> None:
    def spoil(weights: Weights) -> None:
        weights[sorted(weights)[0]][0, 0] = float("nan")

    changed(adapter, spoil, ADAPTER)
    with pytest.raises(VideoOPDError, match=rf"{adapter} has weights that are NaN"):
        load_model(adapter, "float32")
    with pytest.raises(VideoOPDError, match=rf"{adapter} has weights that are NaN"):
        merge_adapter(adapter, tmp_path / "merged", "float32")


def test_an_adapter_on_a_base_with_a_weight_missing(adapter: Path, copied: Path) -> None:
    changed(copied, pop)
    with pytest.raises(VideoOPDError, match=rf"^{copied} does not hold .* lacks {Q_PROJ}"):
        check_checkpoint(adapter)
