from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from opd_core.types import Policy, VideoOPDError
from storage.hashes import WeightsCache
from storage.runs.policies import publish, read_manifest, weights_hash
from storage.runs.run import Run
from tests.storage.storage_factories import checkpoint, new_run, tensors, update, write_safetensors

MANIFEST = {"policy_version": 1, "parent_version": 0}


def test_the_hash_ignores_files_order_and_metadata(tmp_path: Path) -> None:
    content = tensors()
    write_safetensors(tmp_path / "one" / "model.safetensors", content)
    for i, name in enumerate(reversed(content)):
        path = tmp_path / "many" / f"model-{i}.safetensors"
        write_safetensors(path, {name: content[name]}, metadata=False)
    assert weights_hash(tmp_path / "one") == weights_hash(tmp_path / "many")


@pytest.mark.parametrize("change", ["value", "name", "dtype", "shape", "less"])
def test_the_hash_sees_every_change(tmp_path: Path, change: str) -> None:
    content = tensors()
    write_safetensors(tmp_path / "a" / "model.safetensors", content)
    if change == "value":
        content["b"] = content["b"] + np.float32(1e-6)
    elif change == "name":
        content["z"] = content.pop("b")
    elif change == "dtype":
        content["b"] = content["b"].view("i4")
    elif change == "shape":
        content["b"] = content["b"].reshape(5, 3)
    else:
        del content["b"]
    write_safetensors(tmp_path / "b" / "model.safetensors", content)
    assert weights_hash(tmp_path / "a") != weights_hash(tmp_path / "b")


def test_the_hash_agrees_with_the_safetensors_library(tmp_path: Path) -> None:
    numpy = pytest.importorskip("safetensors.numpy")
    content = {**tensors(), "empty": np.zeros((0, 2), "f4")}
    (tmp_path / "a").mkdir()
    numpy.save_file(content, tmp_path / "a" / "model.safetensors")
    write_safetensors(tmp_path / "b" / "model.safetensors", content)
    assert weights_hash(tmp_path / "a") == weights_hash(tmp_path / "b")


def test_an_adapter_is_its_tensors_its_settings_and_its_base(tmp_path: Path) -> None:
    def adapter(name: str, base: Path | str, seed: int = 5, **settings: Any) -> Path:
        folder = tmp_path / name
        write_safetensors(folder / "adapter_model.safetensors", tensors(seed))
        config = {"r": 4, "target_modules": ["q", "k"], "base_model_name_or_path": str(base)}
        (folder / "adapter_config.json").write_text(json.dumps({**config, **settings}))
        return folder

    base, other = checkpoint(tmp_path / "base", 0), checkpoint(tmp_path / "other", 1)
    first = weights_hash(adapter("a", base))
    assert first == weights_hash(adapter("b", base, target_modules=["k", "q"], inference_mode=True))
    assert first == weights_hash(adapter("c", "/nowhere"), base)
    assert first == weights_hash(adapter("d", "../base"))
    different = [adapter("e", other), adapter("f", base, seed=6), adapter("g", base, lora_alpha=2)]
    assert len({first, *map(weights_hash, different)}) == 4


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_weights_that_are_no_numbers_are_told_from_the_largest_ones(
    tmp_path: Path, dtype: str
) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    kind = getattr(torch, dtype)
    largest = torch.finfo(kind).max
    for value in (largest, -largest, 0.0, torch.finfo(kind).tiny):
        save_file(_with(torch, kind, value), tmp_path / "model.safetensors")
        weights_hash(tmp_path)
    for value in (float("nan"), float("inf"), float("-inf")):
        save_file(_with(torch, kind, value), tmp_path / "model.safetensors")
        with pytest.raises(VideoOPDError, match="NaN or infinite, w among them; restore"):
            weights_hash(tmp_path)


def _with(torch: Any, kind: Any, value: float) -> dict[str, Any]:
    weights = torch.randn(7, 5).to(kind)
    weights[6, 4] = value
    return {"a": torch.zeros(3, dtype=torch.uint8), "w": weights}


def test_an_update_that_gave_no_numbers_is_not_published(tmp_path: Path) -> None:
    staging = tmp_path / ".v1.staging"
    write_safetensors(staging / "model.safetensors", {"w": np.array([1.0, np.nan], "f4")})
    with pytest.raises(VideoOPDError, match="NaN or infinite, w among them"):
        publish(staging, tmp_path / "v1", MANIFEST)
    assert not (tmp_path / "v1").exists()


@pytest.mark.parametrize("damage", ["empty", "cut", "header", "none", "twice"])
def test_damaged_weights_are_named(tmp_path: Path, damage: str) -> None:
    folder = checkpoint(tmp_path / "policy")
    file = folder / "model.safetensors"
    if damage == "empty":
        file.write_bytes(b"")
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "header":
        file.write_bytes(file.read_bytes()[:8] + b"[" + file.read_bytes()[9:])
    elif damage == "none":
        file.unlink()
    else:
        shutil.copy(file, folder / "copy.safetensors")
    with pytest.raises(VideoOPDError, match=str(folder)):
        weights_hash(folder)


def test_the_cache_serves_untouched_folders_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, cache = checkpoint(tmp_path / "policy"), WeightsCache(tmp_path / "cache.json")
    first = weights_hash(folder, cache=cache)
    with monkeypatch.context() as patch:
        patch.setattr("storage.hashes._tensors_hash", lambda folder: pytest.fail("hashed again"))
        assert weights_hash(folder, cache=cache) == first
    checkpoint(folder, seed=3)
    assert weights_hash(folder, cache=cache) == weights_hash(folder) != first
    (tmp_path / "cache.json").write_text("[1")
    assert weights_hash(folder, cache=cache) == weights_hash(folder)


def test_publish_moves_the_folder_and_writes_the_manifest(tmp_path: Path) -> None:
    staging, final = checkpoint(tmp_path / "staging"), tmp_path / "policies" / "v1"
    policy = publish(staging, final, MANIFEST)
    assert policy == Policy(1, final, weights_hash(final))
    assert read_manifest(final) == {**MANIFEST, "weights_hash": policy.weights_hash}
    assert not staging.exists()


def test_publish_keeps_the_same_weights_and_replaces_leftovers(tmp_path: Path) -> None:
    final = tmp_path / "policies" / "v1"
    publish(checkpoint(tmp_path / "a"), final, {**MANIFEST, "run_id": "first"})
    publish(checkpoint(tmp_path / "b"), final, {**MANIFEST, "run_id": "second"})
    assert read_manifest(final)["run_id"] == "first"
    policy = publish(checkpoint(tmp_path / "c", seed=9), final, MANIFEST)
    assert weights_hash(final) == policy.weights_hash
    assert [p.name for p in final.parent.iterdir()] == ["v1"]


def test_publish_mends_a_damaged_folder(tmp_path: Path) -> None:
    final = tmp_path / "policies" / "v1"
    publish(checkpoint(tmp_path / "a"), final, MANIFEST)
    checkpoint(final, seed=9)
    policy = publish(checkpoint(tmp_path / "b"), final, MANIFEST)
    assert weights_hash(final) == policy.weights_hash


def test_publish_never_replaces_a_committed_policy(tmp_path: Path) -> None:
    final = tmp_path / "v1"
    policy = publish(checkpoint(tmp_path / "a"), final, MANIFEST)
    staging = checkpoint(tmp_path / "b", seed=9)
    with pytest.raises(VideoOPDError, match="policy 1 is committed with other weights"):
        publish(staging, final, MANIFEST, committed_hash=policy.weights_hash)
    assert weights_hash(final) == policy.weights_hash


def round_of(run: Run, seed: int) -> Policy:
    parent = run.current_policy()
    staging = checkpoint(run.staging_folder(parent.version + 1), seed)
    policy = run.publish_policy(staging, parent)
    row = update(policy.version, policy.weights_hash, checkpoint=run.relative(policy.path))
    run.append("updates", [row], policy_version=policy.version)
    return policy


def test_a_policy_is_current_once_its_row_is_written(run: Run) -> None:
    base = run.current_policy()
    assert base == Policy(0, run.path.parent / "student", base.weights_hash)
    run.publish_policy(checkpoint(run.staging_folder(1), 7), base)
    assert run.current_policy() == base
    first = round_of(run, 8)
    assert run.current_policy() == first
    second = round_of(run, 9)
    assert (run.current_policy(), run.policy(1), run.policy(0)) == (second, first, base)
    manifest = read_manifest(second.path)
    assert manifest["parent_hash"] == first.weights_hash and manifest["run_id"] == run.run_id
    assert manifest["table_versions"]["updates"] == 2
    with pytest.raises(VideoOPDError, match="has no policy 7"):
        run.policy(7)


def test_a_run_that_was_moved_finds_its_policies(run: Run, tmp_path: Path) -> None:
    policy = round_of(run, 8)
    moved = tmp_path / "elsewhere"
    run.path.rename(moved)
    assert Run.open(moved).current_policy() == Policy(1, moved / "policies/v1", policy.weights_hash)


@pytest.mark.parametrize("damage", ["folder", "manifest", "weights", "row"])
def test_a_damaged_checkpoint_is_refused(run: Run, damage: str) -> None:
    folder = round_of(run, 8).path
    if damage == "folder":
        shutil.rmtree(folder)
    elif damage == "manifest":
        (folder / "manifest.json").write_text("{")
    elif damage == "weights":
        checkpoint(folder, 9)
    else:
        (folder / "manifest.json").write_text('{"weights_hash": "other"}')
    with pytest.raises(VideoOPDError, match=str(folder)):
        run.current_policy()


@pytest.mark.kill
@pytest.mark.parametrize(
    ("patch", "call", "leftover"),
    [
        ("storage.runs.policies:write_json", 1, False),
        ("storage.runs.policies:write_json", 1, True),
        ("storage.files:sync_tree", 1, True),
        ("pathlib:Path.rename", 1, False),  # to the final name
        ("pathlib:Path.rename", 1, True),  # of the leftover, out of the way
        ("pathlib:Path.rename", 2, True),
        ("shutil:rmtree", 1, False),  # of what was replaced, which is there or is not
        ("shutil:rmtree", 1, True),
    ],
)
def test_publishing_killed_anywhere_can_be_done_again(
    tmp_path: Path,
    start: Callable[..., subprocess.Popen[str]],
    patch: str,
    call: int,
    leftover: bool,
) -> None:
    run = new_run(tmp_path)
    if leftover:
        run.publish_policy(checkpoint(run.staging_folder(1), 6), run.current_policy())
    assert start("publish", tmp_path, patch, call).wait(60) == -9
    assert run.current_policy().version == 0
    policy = round_of(run, 7)
    assert run.current_policy() == policy
    assert sorted(p.name for p in (run.path / "policies").iterdir()) == ["v1"]
