"""Checkpoints by name: from the cache, or brought there from a server that speaks the hub's API."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from opd_core.hub.cache import missing_files
from tests.hub_cache import FIRST, REPO, SECOND, fill
from tests.hub_server import Hub, serving
from tests.tiny_config import ROOT

STUDENT = ROOT / "configs" / "tiny" / "student"
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
SCRIPT = """
import sys
from contextlib import contextmanager
from opd_core.hub.fetching import whole_snapshot
from opd_core.hub.name import hub_model
from opd_core.types import VideoOPDError

@contextmanager
def progress(what, total):
    done = []
    yield done.append
    print(what, total, sum(done))

try:
    print(whole_snapshot(hub_model(sys.argv[1]), progress))
except VideoOPDError as error:
    sys.exit(f"{error}")
"""
Bring = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving() as hub:
        yield hub


@pytest.fixture
def bring(tmp_path: Path, hub: Hub) -> Bring:
    """`bring("org/name")` in a process of its own, whose hub is `hub` and whose cache is new."""

    def run(name: str, **environment: str) -> subprocess.CompletedProcess[str]:
        known = {
            **os.environ, "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_ENDPOINT": hub.address,
            "HF_HUB_OFFLINE": "", "TRANSFORMERS_OFFLINE": "", "PYTHONPATH": str(ROOT),
            "HF_HUB_DISABLE_TELEMETRY": "1", **environment,
        }  # fmt: skip
        return subprocess.run(
            [sys.executable, "-c", SCRIPT, name], env=known, capture_output=True, text=True,
            timeout=60, check=False,
        )  # fmt: skip

    return run


@pytest.fixture
def published(tmp_path: Path, hub: Hub) -> Path:
    """The tiny student on the hub, with what nobody here needs beside it."""
    folder = Path(shutil.copytree(STUDENT, tmp_path / "published"))
    (folder / "pytorch_model.bin").write_bytes(b"0" * 1000)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    (folder / "onnx").mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / "onnx" / name).write_text("{}")
    hub.publish(REPO, folder, FIRST)
    return folder


def refused(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    return done.stderr.strip().splitlines()[-1]


def test_what_a_checkpoint_needs_is_fetched_once(
    bring: Bring, hub: Hub, published: Path, tmp_path: Path
) -> None:
    done = bring(REPO)
    assert done.returncode == 0, done.stderr
    shown, folder = done.stdout.splitlines()
    snapshot = tmp_path / "cache" / "models--Tiny--Student" / "snapshots" / FIRST
    assert Path(folder) == snapshot
    there = {p.relative_to(snapshot).as_posix() for p in snapshot.rglob("*") if p.is_file()}
    assert there == {p.name for p in STUDENT.iterdir()} | {"README.md"}
    for file in STUDENT.iterdir():
        assert (snapshot / file.name).read_bytes() == file.read_bytes()
    size = sum(file.stat().st_size for file in snapshot.iterdir())
    assert shown == f"{REPO} (MB) {-(-size // 10**6)} {size // 10**6}", (
        "the bar ends where it should"
    )

    asked = len(hub.asked)
    assert bring(REPO).stdout.split() == [str(snapshot)]
    assert bring(f"{REPO}@{FIRST}").stdout.split() == [str(snapshot)]
    assert len(hub.asked) == asked, "what is there is not asked for"


def test_a_tag_or_a_commit_is_fetched_as_it_was(
    bring: Bring, hub: Hub, published: Path, tmp_path: Path
) -> None:
    newer = Path(shutil.copytree(published, tmp_path / "newer"))
    (newer / "generation_config.json").write_text('{"temperature": 0.5}')
    hub.publish(REPO, newer, SECOND)
    hub.revisions[REPO]["v1.0"] = FIRST
    for name, commit in ((f"{REPO}@v1.0", FIRST), (REPO, SECOND), (f"{REPO}@{FIRST}", FIRST)):
        folder = Path(bring(name).stdout.splitlines()[-1])
        assert folder.name == commit
    assert (folder / "generation_config.json").read_bytes() == (
        STUDENT / "generation_config.json"
    ).read_bytes()


def test_only_what_is_missing_of_a_snapshot_is_fetched(
    bring: Bring, hub: Hub, published: Path, tmp_path: Path
) -> None:
    snapshot = Path(bring(REPO).stdout.splitlines()[-1])
    weights = snapshot / "model.safetensors"
    weights.resolve().unlink()
    weights.unlink()
    hub.sent.clear()
    assert bring(REPO).returncode == 0
    assert hub.sent == ["model.safetensors"] and weights.is_file()


@pytest.mark.parametrize("offline", [{"HF_HUB_OFFLINE": "1"}, {"TRANSFORMERS_OFFLINE": "1"}])
def test_offline_what_is_cached_is_taken_and_what_is_not_is_a_sentence(
    bring: Bring, hub: Hub, tmp_path: Path, offline: dict[str, str]
) -> None:
    begun = time.monotonic()
    said = refused(bring(REPO, **offline))
    assert time.monotonic() - begun < 20  # and no retries of minutes
    assert f"does not have {REPO}" in said and str(tmp_path / "cache") in said
    assert "HF_HUB_OFFLINE" in said and f"`hf download {REPO}`" in said
    assert "--revision v1`" in refused(bring(f"{REPO}@v1", **offline))
    snapshot = fill(tmp_path / "cache", STUDENT)
    assert bring(REPO, **offline).stdout.split() == [str(snapshot)]
    assert not hub.asked


@pytest.mark.parametrize("said", [b"\x00\xff", b"../../..", b"", FIRST.encode()[:39]])
def test_a_damaged_branch_of_the_cache_is_one_that_was_never_seen(
    bring: Bring, tmp_path: Path, said: bytes
) -> None:
    snapshot = fill(tmp_path / "cache", STUDENT)
    branch = snapshot.parents[1] / "refs" / "main"
    branch.write_bytes(said)
    assert f"does not have {REPO}" in refused(bring(REPO, HF_HUB_OFFLINE="1"))
    branch.write_text(FIRST)
    assert bring(REPO, HF_HUB_OFFLINE="1").stdout.split() == [str(snapshot)]


def test_without_a_network_it_is_a_sentence_at_once(bring: Bring) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # and does not listen
        begun = time.monotonic()
        said = refused(bring(REPO, HF_ENDPOINT=f"http://127.0.0.1:{unused.getsockname()[1]}"))
    assert time.monotonic() - begun < 20  # and no retries of minutes
    assert "the hub cannot be asked" in said and f"`hf download {REPO}`" in said


def test_a_hub_that_does_not_answer_is_a_sentence_within_seconds(bring: Bring) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()  # takes connections and says nothing
        begun = time.monotonic()
        said = refused(bring(REPO, HF_ENDPOINT=f"http://127.0.0.1:{silent.getsockname()[1]}"))
    assert time.monotonic() - begun < 20
    assert "the hub cannot be asked" in said


def test_part_of_a_checkpoint_is_said_offline(bring: Bring, tmp_path: Path) -> None:
    whole = Path(shutil.copytree(STUDENT, tmp_path / "sharded"))
    (whole / "model.safetensors").rename(whole / SHARDS[0])
    index = {"weight_map": {"a": SHARDS[0], "b": SHARDS[1], "c": "model-00003.safetensors"}}
    (whole / "model.safetensors.index.json").write_text(json.dumps(index))
    fill(tmp_path / "cache", whole)
    said = refused(bring(REPO, HF_HUB_OFFLINE="1"))
    assert f"lacks {SHARDS[1]} and 1 more files of {REPO}" in said


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "processor_config.json"])
def test_each_file_that_a_checkpoint_needs_is_missed(
    bring: Bring, tmp_path: Path, name: str
) -> None:
    fill(tmp_path / "cache", STUDENT, without={name})
    assert " of Tiny/Student" in refused(bring(REPO, HF_HUB_OFFLINE="1"))


def test_what_the_hub_refuses_is_a_sentence_each(
    bring: Bring, hub: Hub, published: Path, tmp_path: Path
) -> None:
    said = refused(bring("Tiny/Studnet"))
    assert "the hub has no model Tiny/Studnet, or it is private" in said
    said = refused(bring(f"{REPO}@v9"))
    assert f"{REPO} has no revision v9 on the hub" in said
    hub.gated.add("Tiny/Gated")
    said = refused(bring("Tiny/Gated"))
    assert "Tiny/Gated is gated: accept its terms" in said and "hf auth login" in said
    assert not hub.sent and not (tmp_path / "cache" / "models--Tiny--Student").exists()


def test_weights_of_another_format_are_not_fetched(bring: Bring, hub: Hub, published: Path) -> None:
    (published / "model.safetensors").unlink()
    said = refused(bring(REPO))
    assert "no *.safetensors on the hub" in said and "pytorch_model.bin" in said
    assert not hub.sent


def test_a_model_without_a_tokenizer_is_no_checkpoint(
    bring: Bring, hub: Hub, published: Path
) -> None:
    (published / "tokenizer.json").unlink()
    assert f"{REPO} has no tokenizer.json on the hub" in refused(bring(REPO))


def test_a_disk_without_room_is_said_before_anything_is_fetched(
    hub: Hub, published: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub.hf_api import ModelInfo

    from opd_core.hub import fetching
    from opd_core.hub.name import HubModel
    from opd_core.types import VideoOPDError

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    free = shutil.disk_usage(tmp_path).free
    siblings = [{"rfilename": "model.safetensors", "size": free + 2 * 10**12}]
    info = ModelInfo(id=REPO, siblings=siblings)  # type: ignore[no-untyped-call]
    monkeypatch.setattr(fetching, "_asked", lambda model: info)
    with pytest.raises(VideoOPDError, match=r"takes .* GB, and .* has .* GB left; make room"):
        fetching.whole_snapshot(HubModel(REPO), lambda what, total: pytest.fail("it was begun"))


def test_an_adapters_base_comes_with_it(
    bring: Bring, hub: Hub, published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from opd_core.adapter_folder import base_folder

    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": REPO}))
    for name in ("tokenizer.json", "processor_config.json"):
        shutil.copyfile(STUDENT / name, adapter / name)
    (adapter / "adapter_model.safetensors").write_bytes(b"{}")
    hub.publish("Tiny/Adapter", adapter, SECOND)
    done = bring("Tiny/Adapter")
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.splitlines()[-1])
    assert folder.name == SECOND and "model.safetensors" in hub.sent
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    assert base_folder(folder).name == FIRST
    assert not missing_files(base_folder(folder))
