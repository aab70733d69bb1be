"""Names on the hub: what is one, and what a folder of the cache says of itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opd_core.hub.name import HubModel, cached_model, hub_model, model_name

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("text", "repo", "revision"),
    [
        ("Qwen/Qwen3-VL-8B-Instruct", "Qwen/Qwen3-VL-8B-Instruct", "main"),
        ("TencentARC/TimeLens-8B@v1.0", "TencentARC/TimeLens-8B", "v1.0"),
        (f"a/b@{COMMIT}", "a/b", COMMIT),
        ("a/b@refs/pr/3", "a/b", "refs/pr/3"),
    ],
)  # fmt: skip
def test_what_is_a_name(text: str, repo: str, revision: str) -> None:
    assert hub_model(text) == hub_model(Path(text)) == HubModel(repo, revision)
    assert str(HubModel(repo, revision)) == text


@pytest.mark.parametrize(
    "text",
    ["Qwen", "a/b/c", "/a/b", "../models/a", "./a", "~/a", "a/b@", "a/b c", "", "a/..", "a--b/c",
     "a/b@c d", "-a/b", "a/" + "b" * 97],
)  # fmt: skip
def test_what_is_none(text: str) -> None:
    assert hub_model(text) is None


@given(st.text())
def test_any_text_is_a_name_that_says_itself_or_none(text: str) -> None:
    model = hub_model(text)
    assert model is None or hub_model(str(model)) == model


def test_a_snapshot_names_its_model_at_its_commit(tmp_path: Path) -> None:
    """A name may hold what stands between org and name in the cache."""
    for repo in ("Qwen/Qwen3-VL-8B-Instruct", "a/b-c_d.e"):
        folder = tmp_path / HubModel(repo).cached_as / "snapshots" / COMMIT
        assert cached_model(folder) == HubModel(repo, COMMIT)
        assert model_name(folder) == f"{repo}@{COMMIT}"


@pytest.mark.parametrize(
    "folder",
    ["teacher", f"models--a--b/{COMMIT}", f"models--a--b/blobs/{COMMIT}", f"snapshots/{COMMIT}",
     "models--a--b/snapshots/main", f"a--b--c/snapshots/{COMMIT}"],
)  # fmt: skip
def test_any_other_folder_is_called_by_its_name(folder: str) -> None:
    assert cached_model(Path(folder)) is None
    assert model_name(Path("models") / folder) == Path(folder).name
