"""What `videoopd plan` says of memory against what stages take, on the tiny world on a CPU.

Two measures, of the same stages in a process of their own:

- torch's: the bytes of all tensors that are alive, counted at every operation. Exact, the same
  every time, and blind to what a kernel allocates inside itself.
- the system's: the most that was resident, above what was before the stage (videos decoded and
  libraries loaded by one before). All there is, less what the allocator had kept of earlier stages,
  which is much of the tiny world's 30 MB a stage. It stands beside the other as a check.

A student larger than the demo's shows what each setting of [update] brings.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from flows.bench.interleaved import Row
from flows.bench.tiny_config import world_config
from opd_core.annotations.timelens import read_timelens
from opd_core.config.load import Config, load_config
from opd_core.model import peak_memory
from opd_core.plan.plan import Machine, Plan
from opd_core.plan.plan_of_config import plan_of
from opd_core.types import GroundingExample, Policy, Rollout

TRAIN_VIDEOS, EVAL_VIDEOS = 60, 40
EXAMPLES = 128
LARGER = {"hidden_size": 384, "intermediate_size": 1152, "num_hidden_layers": 12,
          "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 64}  # fmt: skip
"""Of the language model of a student of 24 M parameters."""
UNGATED = ["update.max_logprob_mismatch=100", "rollout.max_engine_mismatch=100"]
"""Random weights are less sure in bfloat16 than a model that was trained."""
SETTINGS = {
    "float32": [],
    "checkpointing": ["update.gradient_checkpointing=true"],
    "8-bit": ["student.dtype=bfloat16", "update.weights=bfloat16", "update.optimizer=adamw_8bit"],
    "offload": ["student.dtype=bfloat16", "update.offload=true"],
    "LoRA": ["student.dtype=bfloat16", "update.lora.rank=8", "update.freeze_vision=true"],
}
Made = TypeVar("Made")
# Freed memory is the system's again at once, so that resident is what is in use.
_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of tensors that operations on this thread have made and that are alive."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._bytes: dict[int, int] = {}
        self._now = 0
        self.peak = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self.count(tensor)
        return made

    def count(self, tensor: Tensor) -> None:
        """Take the storage of a tensor in, until it is freed."""
        if inside := getattr(tensor, "__tensor_flatten__", None):  # as torchao's moments
            for name in inside()[0]:
                self.count(getattr(tensor, name))
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._bytes:
            return
        self._bytes[key] = storage.nbytes()
        self._now += storage.nbytes()
        self.peak = max(self.peak, self._now)
        weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self._now -= self._bytes.pop(key)


def planned_rows() -> Iterator[Row]:
    """Planned over measured memory of each stage, and of updates by their settings."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        config = world_config(folder, 0, TRAIN_VIDEOS, EVAL_VIDEOS)
        short = [f"rollout.examples_per_round={EXAMPLES}", "update.epochs=1"]
        yield from _rows("tiny world", config, short, None)
        student = larger_student(load_config(config).student.path, folder / "larger")
        for name, settings in SETTINGS.items():
            larger = [*short, f"student.path='{student}'", *UNGATED, *settings]
            yield from _rows(f"24 M parameters, {name}", config, larger, "update")


def _rows(name: str, config: str, overrides: list[str], only: str | None) -> Iterator[Row]:
    planned = planned_bytes(load_config(config, overrides))
    tensors, resident = (_measured(config, overrides, how) for how in ("tensors", "resident"))
    for stage, measured in tensors.items():
        if only not in (None, stage):
            continue
        yield Row(
            f"planned / measured memory, {name}, {stage}",
            planned[stage] / measured,
            "x",
            "within 20 % of the tensors'",
            abs(planned[stage] / measured - 1) <= 0.2,
            {
                "planned MB": planned[stage] / 1e6,
                "tensors MB": measured / 1e6,
                "resident MB": resident[stage] / 1e6,
            },
        )


def planned_bytes(config: Config) -> dict[str, float]:
    """Stage -> what is planned of it on a CPU, but for the program and the decoded videos, which
    are there before a stage that is measured."""
    plan: Plan = plan_of(config, Machine(None, None))
    there = ("the program", "decoded videos")
    return {
        stage.stage: stage.memory.on_device
        + sum(part.bytes for part in stage.memory.host if part.name not in there)
        for stage in plan.stages
    }


def _measured(config: str, overrides: list[str], how: str) -> dict[str, float]:
    command = [sys.executable, "-m", "flows.bench.planned", how, config, *overrides]
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env=os.environ | _ALLOCATOR
    )
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def measured_bytes(config: Config, how: str) -> dict[str, float]:
    """Stage -> the most that was taken, of `tensors` or `resident`, with `EXAMPLES` examples."""
    from opd_core.rollout.answers import evaluate, predict, sample_rollouts
    from opd_core.rollout.by_example import by_example
    from opd_core.scoring.trees import score_rollouts
    from opd_core.update.rows import HeldRows, Trained
    from opd_core.update.student import update_student

    read = read_timelens(config.data.train, "train")
    examples = [e for e in read if isinstance(e, GroundingExample)][:EXAMPLES]
    student, teacher = (Policy(0, m.path, "0") for m in (config.student, config.teacher))
    peaks: dict[str, float] = {}

    def record(stage: str, work: Callable[[], Made]) -> Made:
        gc.collect()
        if how == "tensors":
            with LiveTensors() as live:
                made = work()
            peaks[stage] = float(live.peak)
            return made
        before = _resident()
        peak_memory.begin()
        made = work()
        peaks[stage] = float(peak_memory.peak()[0] - before)
        return made

    def rollouts() -> list[Rollout]:
        return [r for b in sample_rollouts(config, student, examples, set()) for r in b.records]

    rollouts()  # decodes the videos, and loads what is loaded once
    sampled = record("rollout", rollouts)
    record("validate", lambda: list(predict(config, teacher, "", examples, set())))
    answers = by_example(sampled)
    pairs = [(e, answers[e.example_id]) for e in examples]
    scores = {
        s.rollout_id: s
        for batch in record("score", lambda: list(score_rollouts(config, teacher, pairs)))
        for s in batch.records
    }
    work = HeldRows(
        [Trained(e, tuple(r), tuple(scores[x.rollout_id] for x in r)) for e, r in pairs]
    )
    with tempfile.TemporaryDirectory() as place:
        record("update", lambda: update_student(config, student, work, Path(place) / "policy"))
    record("evaluate", lambda: list(evaluate(config, student, examples, set())))
    return peaks


def _resident() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(x.split()[1] for x in status.splitlines() if x.startswith("VmRSS")))


def larger_student(source: Path, folder: Path) -> Path:
    """A student of the shape `LARGER` with random weights and the processor of `source`."""
    from opd_core.model.architectures import architecture_in
    from opd_core.update.trained_model import belongs_to_processor

    config = json.loads((source / "config.json").read_text())
    family = architecture_in(source)
    config[family.text_key] |= LARGER
    config[family.text_key]["rope_parameters"] |= {"mrope_section": [12, 10, 10]}
    config[family.vision_key]["out_hidden_size"] = LARGER["hidden_size"]
    torch.manual_seed(0)
    model = family.load_class()(family.load_class().config_class.from_dict(config))
    model.to(torch.bfloat16).save_pretrained(folder)
    for file in source.iterdir():
        if belongs_to_processor(file.name) or file.name == "generation_config.json":
            shutil.copyfile(file, folder / file.name)
    return folder


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(measured_bytes(load_config(sys.argv[2], sys.argv[3:]), sys.argv[1])))
