"""Records, checkpoint folders and runs as small as they get."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

from opd_core.types import (
    DataChange,
    Divergence,
    Draw,
    Evaluation,
    GroundingExample,
    ModelEvaluation,
    QuarantinedItem,
    Rerun,
    Rollout,
    Selection,
    Span,
    StageUse,
    TeacherPrediction,
    TeacherScore,
    TrainedRollout,
    Update,
    UpdateStep,
    make_rollout_id,
)  # fmt: skip
from storage.runs.run import Run
from storage.tables.provenance import Provenance
from storage.tables.schemas import TABLES

PROVENANCE = Provenance("run-1", "rollout", 0, "c0ffee", None, "attempt-1")


def provenance(table: str) -> Provenance:
    return Provenance("run-1", TABLES[table].writer or "score", 0, "c0ffee", None, "attempt-1")


def rollout(index: int = 0, version: int = 0, **changes: Any) -> Rollout:
    example_id = f"{index:016x}"
    content = {
        "rollout_id": make_rollout_id(version, example_id, 0),
        "policy_version": version,
        "policy_hash": "p" * 64,
        "answered_by": "student",
        "example_id": example_id,
        "sample_index": 0,
        "seed": 2**63 - 1,
        "prompt_token_ids": (1, 2, 3),
        "completion_token_ids": (4, 5),
        "sampling_logprobs": (-0.5, -0.25),
        "finish_reason": "stop",
        "text": "The event happens in 1.0 - 2.0 seconds.",
        "predicted_span": Span(1.0, 2.0),
        "student_iou": 0.5,
        "frame_indices": (0, 2),
        "frame_timestamps": (0.0, 0.1),
        "grid_thw": (1, 4, 4),
        "pixel_hash": "x",
        "processor_hash": "y",
        "engine": "scripted",
        "engine_version": "1",
        "engine_mismatch": None,
        "seconds": 0.1,
    }
    return Rollout(**{**content, **changes})


def score(index: int = 0, **changes: Any) -> TeacherScore:
    content = {
        "rollout_id": rollout(index).rollout_id,
        "policy_version": 0,
        "teacher_id": "teacher",
        "teacher_hash": "t" * 64,
        "teacher_logprobs": (-0.5, -1.5),
        "topk_token_ids": ((1, 2), (3, 4)),
        "topk_logprobs": ((-0.5, -1.0), (-0.5, float("-inf"))),
        "tail_logprobs": (-3.0, float("-inf")),
        "teacher_entropies": None,
        "hidden_states": None,
        "scorer": "scripted",
        "content_hash": f"{index:032x}",
        "reused_from": None,
        "seconds": 0.1,
    }
    return TeacherScore(**{**content, **changes})


def update(version: int = 1, digest: str = "n" * 64, **changes: Any) -> Update:
    step = UpdateStep(0, 0.1, 1e-6, 1.0, 20, 2, 0.3, 0.0, 0.9, 1.1, 1.0, None, None, 0.5)
    content = {
        "policy_version": version,
        "policy_hash": digest,
        "parent_version": version - 1,
        "parent_hash": "p" * 64,
        "checkpoint": f"policies/v{version}",
        "objective": "policy_gradient",
        "uses_scores": True,
        "teacher_hash": "t" * 64,
        "rollouts": 2,
        "tokens": 20,
        "max_logprob_mismatch": None,
        "stopped_early": None,
        "optimizer_restarted": None,
        "teacher_passes_saved": 0,
        "steps": (step, step),
        "seconds": 1.0,
        "moved_share": 0.25,
        "stages": (StageUse("update", 1.0, 40, 40.0, 1 << 20, "process"),),
    }
    return Update(**{**content, **changes})


def selection(**changes: object) -> Selection:
    absent = ("teacher_iou", "student_iou", "disagreement", "reverse_kl", "rank", "pool", "weight",
              "question_hash")  # fmt: skip
    content: dict[str, Any] = {
        "rollout_id": "r",
        "policy_version": 0,
        "example_id": "e",
        "curriculum": "tvdf",
        "selected": False,
        "reason": "teacher unknown",
        "settings": "{}",
        "seed": 0,
        "rollouts_version": 1,
        "predictions_version": 1,
        "scores_version": 1,
    }
    return Selection(**{**dict.fromkeys(absent), **content, **changes})


def one_of_each() -> dict[str, Any]:
    """A record for every table; optional fields absent where there are any."""
    return {
        "examples": GroundingExample("e", "a.mp4", 9.0, "a dog", Span(1.0, 2.0), "s", "train"),
        "quarantine": QuarantinedItem("e", "score", None, "too long", None),
        "data_changes": DataChange(1, "e", "removed", None, None, None, 0),
        "draws": Draw(0, "e", 0),
        "teacher_predictions": TeacherPrediction(
            "e", 0, "t", "h", "q", "?", None, 0.0, 1, "p", None
        ),
        "rollouts": rollout(predicted_span=None),
        "teacher_scores": score(topk_token_ids=None, topk_logprobs=None, tail_logprobs=None),
        "divergences": Divergence("r", 0, "t", (0.5,), (0.25,), (0.125,), 0.0, 0.0, 0.1),
        "selections": selection(),
        "trained_rollouts": TrainedRollout("r", 0, 0, (-0.5,)),
        "updates": update(),
        "reruns": Rerun(1, 0, "score", 1, "forced", 12, ("focus",)),
        "evaluations": Evaluation(0, "p", "e", "?", (1,), "stop", None, 0.0, None, None, "hf", 0.1),
        "model_evaluations": ModelEvaluation(
            "m", "q", "model", "e", "?", (1,), "stop", None, 0.0, None, None, "hf", 0.1
        ),
    }


def tensors(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal((3, 5)).astype("f4") for name in ("a.weight", "b", "c")}


def write_safetensors(path: Path, content: dict[str, np.ndarray], metadata: bool = True) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}} if metadata else {}
    data = b""
    for name, value in content.items():
        offsets = [len(data), len(data) + value.nbytes]
        dtype = {"f": "F32", "i": "I32"}[value.dtype.kind]
        header[name] = {"dtype": dtype, "shape": list(value.shape), "data_offsets": offsets}
        data += value.tobytes()
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def checkpoint(folder: Path, seed: int = 0) -> Path:
    write_safetensors(folder / "model.safetensors", tensors(seed))
    (folder / "config.json").write_text("{}")
    return folder


def new_run(folder: Path, config_hash: str = "c0ffee") -> Run:
    """A run below `folder`, whose student and teacher are made when they are missing."""
    for name, seed in (("student", 0), ("teacher", 1)):
        if not (folder / name).exists():
            checkpoint(folder / name, seed)
    return Run.create(folder / "run", "{}", config_hash, folder / "student", folder / "teacher")
