"""One bad example costs itself: whatever is wrong with it, the other sentences go on."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from flows import stages
from flows.stage.prepare import opened
from opd_core.prompts import batches as encoding
from opd_core.prompts.encoder import PromptEncoder
from opd_core.types import VideoOPDError
from storage.runs.run import Run
from tests.flows.annotation_files import annotate, reasons, row, write_videos
from tests.flows.kill_points import run_without_server

UNIFORM = {"focus.curriculum": "uniform", "rollout.examples_per_round": 20}
GOOD = [("a red ball", 0, 2), ("a blue ball", 1, 4)]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Any]:
    """Two videos, each with two good sentences; `data.train` may be written again."""
    videos = write_videos(tmp_path / "videos", "a.mp4", "b.mp4")
    return {
        "data.train": annotate(tmp_path / "train.jsonl", row("a.mp4", *GOOD), row("b.mp4", *GOOD)),
        "data.eval": annotate(tmp_path / "eval.jsonl", row("a.mp4", ("an end", 2, 5))),
        "data.videos": videos,
        **UNIFORM,
    }


TOKENS = ["<|video_pad|>", "<|image_pad|>", "<|im_end|>", "<|vision_start|>", "<|placeholder|>"]


def test_sentences_with_control_tokens_make_no_example(
    write_config: Any, files: dict[str, Any], tmp_path: Path
) -> None:
    odd = [(f"a ball {token} rolls", 0, 2) for token in TOKENS]
    annotate(files["data.train"], row("a.mp4", *odd, *GOOD), row("b.mp4", *GOOD))
    annotate(files["data.eval"], row("a.mp4", ("an <|im_start|>end", 2, 5), ("an end", 2, 5)))
    summary = run_without_server(str(write_config(tmp_path, files)))
    found = reasons(tmp_path / "run", "import")
    assert len(found) == len(TOKENS) + 1
    for index, token in enumerate(TOKENS):
        kind, reason = found[f"train.jsonl:1#{index}"]
        assert kind == "annotation" and repr(token) in reason
    run = Run.open(tmp_path / "run")
    assert run.rollouts().collect().height == 2 * 4
    assert summary.rounds[-1].annotations_left_out == len(found)


def test_control_tokens_of_the_checkpoint_are_set_aside_in_the_round(
    write_config: Any, models: dict[str, Path], files: dict[str, Any], tmp_path: Path
) -> None:
    """A token that does not look like one to an importer, and is one to this tokenizer."""
    from transformers import AutoProcessor

    folders = {}
    for role, folder in models.items():
        folders[role] = tmp_path / role
        shutil.copytree(folder, folders[role])
        processor = AutoProcessor.from_pretrained(folder)
        processor.tokenizer.add_special_tokens({"additional_special_tokens": ["[STOP]"]})
        processor.save_pretrained(folders[role])
    annotate(files["data.train"], row("a.mp4", ("a [STOP] sign", 0, 2), *GOOD), row("b.mp4", *GOOD))
    settings = files | {f"{role}.path": folder for role, folder in folders.items()}
    run_without_server(str(write_config(tmp_path, settings)))
    ((query, (kind, reason)),) = reasons(tmp_path / "run").items()
    assert (query, kind) == ("a [STOP] sign", "sentence") and "'[STOP]'" in reason
    assert Run.open(tmp_path / "run").rollouts().collect().height == 2 * 4


def test_a_prompt_without_room_is_set_aside_with_both_numbers(
    write_config: Any, models: dict[str, Path], files: dict[str, Any], tmp_path: Path
) -> None:
    long = " ".join(["a very long sentence about a ball"] * 400)
    annotate(files["data.train"], row("a.mp4", (long, 0, 2), *GOOD), row("b.mp4", *GOOD))
    annotate(files["data.eval"], row("a.mp4", (long, 1, 2), ("an end", 2, 5)))
    config = write_config(tmp_path, files)
    summary = run_without_server(str(config), 2)
    kind, reason = reasons(tmp_path / "run", "rollout")[long]
    assert kind == "too long"
    assert "+ 8 tokens and there is room for 4,096 (max_position_embeddings" in reason
    assert Run.open(tmp_path / "run").draws().collect().height == 5 + 4
    assert [r.eval_examples for r in summary.rounds] == [1, 1, 1]
    assert [r.eval_asked for r in summary.rounds] == [2, 2, 2]
    assert any("1 examples of the eval split have no answer" in n for n in summary.rounds[0].notes)


def test_an_annotated_length_that_is_not_the_files_is_set_aside_until_it_is_corrected(
    write_config: Any, files: dict[str, Any], tmp_path: Path
) -> None:
    other = [("another cut", 0, 2), ("and more of it", 3, 5)]
    annotate(
        files["data.train"], row("a.mp4", *GOOD, duration=6.9), row("b.mp4", *other, duration=7.2)
    )
    config = write_config(tmp_path, files)
    run_without_server(str(config))
    found = reasons(tmp_path / "run")
    assert set(found) == {query for query, *_ in other}
    for kind, reason in found.values():
        assert kind == "duration"
        assert "annotated for a video of 7.2 s and the file has 6.125 s" in reason
    annotate(files["data.train"], row("a.mp4", *GOOD, duration=6.9), row("b.mp4", *other))
    summary = run_without_server(str(config))
    assert Run.open(tmp_path / "run").draws().collect().height == 4 + 4
    assert "annotations: 2 have another duration or source" in summary.rounds[-1].notes


def failing(where: str, error: Exception) -> Any:
    """`PromptEncoder.encode` that raises for sentences with `where` in them."""
    whole = PromptEncoder.encode

    def encode(self: PromptEncoder, clip: Any, queries: list[str]) -> Any:
        if any(where in query for query in queries):
            raise error
        return whole(self, clip, queries)

    return encode


@pytest.mark.parametrize("stage", ["validate", "rollout", "score", "evaluate"])
@pytest.mark.in_turn(always=["rollout"])
def test_whatever_a_processor_raises_costs_that_sentence_alone(
    write_config: Any,
    files: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
) -> None:
    files |= {"focus.curriculum": "tvdf"} if stage == "validate" else {}
    annotate(files["data.eval"], row("a.mp4", ("a blue end", 2, 5), ("an end", 2, 5)))
    config = write_config(tmp_path, files)
    with opened(str(config)) as work:
        for name in ("evaluate", "draw", "validate", "rollout", "score"):
            with monkeypatch.context() as patch:
                if name == stage:
                    broken = failing("blue", AttributeError("no such\nthing"))
                    patch.setattr(PromptEncoder, "encode", broken)
                getattr(stages, name).fn(work, work.policy())
        for name in ("focus", "update"):
            getattr(stages, name).fn(work, work.policy())
        assert work.policy().version == 1
    found = reasons(tmp_path / "run")
    assert set(found) == {"a blue end" if stage == "evaluate" else "a blue ball"}
    ((kind, reason),) = set(found.values())
    assert (kind, reason) == ("processor", "the processor raised AttributeError: no such")
    run = Run.open(tmp_path / "run")
    assert run.rollouts().collect().height == 2 * (4 if stage in ("score", "evaluate") else 2)


def test_in_the_update_it_is_an_error_because_selected_rollouts_stand_on_it(
    write_config: Any, files: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(str(write_config(tmp_path, files))) as work:
        for name in ("draw", "rollout", "score", "focus"):
            getattr(stages, name).fn(work, work.policy())
        with monkeypatch.context() as patch:
            patch.setattr(PromptEncoder, "encode", failing("blue", ValueError("no")))
            with pytest.raises(
                VideoOPDError, match=r"[ab]\.mp4, on which .* raised ValueError: no"
            ):
                stages.update.fn(work, work.policy())
        stages.update.fn(work, work.policy())
        assert work.policy().version == 1


def test_a_processor_that_fails_on_everything_is_one_sentence_and_no_row(
    write_config: Any, files: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(tmp_path, files)
    with monkeypatch.context() as patch:
        patch.setattr(PromptEncoder, "encode", failing("", TypeError("unexpected keyword 'fps'")))
        with pytest.raises(VideoOPDError, match="fails on every example .TypeError: unexpected"):
            run_without_server(str(config))
    assert not (tmp_path / "run").exists(), "nothing was computed"
    run_without_server(str(config))
    assert Run.open(tmp_path / "run").current_policy().version == 1
    assert reasons(tmp_path / "run") == {}


def test_a_video_on_which_the_processor_fails_costs_its_sentences(
    write_config: Any, files: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = PromptEncoder.encode

    def encode(self: PromptEncoder, clip: Any, queries: list[str]) -> Any:
        if clip.duration > 6.0:  # b.mp4 is the longer one
            raise ZeroDivisionError("division by zero")
        return whole(self, clip, queries)

    monkeypatch.setattr(PromptEncoder, "encode", encode)
    run_without_server(str(write_config(tmp_path, files)))
    run = Run.open(tmp_path / "run")
    lost = run.quarantine().collect()
    assert set(lost["video_path"]) == {"b.mp4"} and lost.height == 2
    assert "as it does for any sentence about this video" in lost["reason"][0]
    assert run.updates().collect().height == 1


def test_interrupts_and_no_memory_are_nobodys_fault(
    write_config: Any, files: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(tmp_path, files)
    for error in (KeyboardInterrupt(), SystemExit(3), MemoryError()):
        with monkeypatch.context() as patch, pytest.raises(type(error)):
            patch.setattr(PromptEncoder, "encode", failing("", error))  # type: ignore[arg-type]
            run_without_server(str(config))
    assert reasons(tmp_path / "run") == {}
    encoding.forget_decoded()
