"""Whether a change left every number alone: rounds of an older commit and of this tree, compared.

    make same-as REV=main~3        # or: python -m tests.same_as main~3

Both run the same small configs on one world, each in its own process with its own code, on this
machine. Then all tables are compared, value by value, and all weights, bit by bit. Only what cannot
be equal is left out: who wrote a row and when, and how long things took. A column, table or file
that only one of them has is named, and no difference. Exit code 1: they differ.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import lance
import polars as pl
from safetensors.torch import load_file

from tests.tiny_config import ROOT, as_toml, tiny_settings

LEFT_OUT = {
    "run_id", "config_hash", "git_commit", "attempt", "written_at", "seconds", "stages",
}  # fmt: skip
"""Columns, also inside structs. `config_hash` is of a text that a new config key changes."""

VARIANTS = {
    "tvdf": {},
    "paper": {"update.objective": "policy_gradient", "update.learning_rate": 1e-4,
              "score.teacher_entropy": True, "focus.disagreement": "reverse_kl"},
    "lora": {"update.lora.rank": 4, "update.objective": "exact_forward_kl", "update.epochs": 2},
    "grpo": {"update.objective": "grpo", "focus.curriculum": "uniform",
             "rollout.rollouts_per_example": 4, "update.grpo.reference_kl": 0.1},
}  # fmt: skip
ROUNDS = 2


def main(revision: str) -> int:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        older = folder / "older"
        _git("worktree", "add", "--quiet", "--detach", str(older), revision)
        try:
            world = folder / "world"
            _videoopd(older, "tinyworld", "make", "--out", str(world),
                      "--train-videos", "60", "--eval-videos", "8")  # fmt: skip
            differences = [
                f"{variant}: {difference}"
                for variant in VARIANTS
                for difference in _compare(variant, folder, older, world)
            ]
        finally:
            _git("worktree", "remove", "--force", str(older))
    for difference in differences:
        print(difference)
    if not differences:
        print(f"{len(VARIANTS)} runs of {ROUNDS} rounds are equal to those of {revision}")
    return bool(differences)


def _compare(variant: str, folder: Path, older: Path, world: Path) -> Iterator[str]:
    files = SimpleNamespace(
        train=world / "train.jsonl", eval=world / "eval.jsonl", videos=world / "videos"
    )
    runs = []
    for side, tree in (("older", older), ("newer", ROOT)):
        run = folder / "runs" / side / variant
        config = folder / f"{side}-{variant}.toml"
        config.write_text(as_toml(tiny_settings(run, files) | VARIANTS[variant]))
        _videoopd(tree, "run", str(config), "--rounds", str(ROUNDS))
        runs.append(run)
    count = 0
    for difference in (*_tables(*runs), *_weights(*runs)):
        count += 1
        yield difference
    print(f"{variant}: {'equal' if not count else f'{count} differences'}", flush=True)


def _tables(older: Path, newer: Path) -> Iterator[str]:
    names = [{p.stem for p in (run / "tables").glob("*.lance")} for run in (older, newer)]
    for name in sorted(names[0] ^ names[1]):
        print(f"  only one has the table {name}")
    for name in sorted(names[0] & names[1]):
        before, after = (_table(run / "tables" / f"{name}.lance") for run in (older, newer))
        for column in sorted(set(before.columns) ^ set(after.columns)):
            print(f"  only one has {name}.{column}")
        if before.height != after.height:
            yield f"{name}: {before.height} rows, now {after.height}"
            continue
        for column in (c for c in before.columns if c in after.columns):
            for row, (was, now) in enumerate(zip(before[column], after[column], strict=True)):
                was, now = (_comparable(value) for value in (was, now))
                if was != now:
                    yield f"{name}.{column}, row {row}: {str(was)[:200]}, now {str(now)[:200]}"
                    break


def _table(path: Path) -> pl.DataFrame:
    frame = pl.DataFrame(pl.from_arrow(lance.dataset(path).to_table()))
    if "reused_from" in frame.columns:  # RUN/ROLLOUT, and a run's id is drawn
        frame = frame.with_columns(pl.col("reused_from").str.replace(r"^[^/]*/", ""))
    return frame.drop(LEFT_OUT, strict=False)


def _comparable(value: object) -> object:
    """As Python values, without what is left out in structs."""
    if isinstance(value, pl.Series):
        return [_comparable(item) for item in value.to_list()]
    if isinstance(value, list):
        return [_comparable(item) for item in value]
    if isinstance(value, dict):
        return {k: _comparable(v) for k, v in value.items() if k not in LEFT_OUT}
    return value


def _weights(older: Path, newer: Path) -> Iterator[str]:
    files = [
        {p.relative_to(run): p for p in (run / "policies").rglob("*.safetensors")}
        for run in (older, newer)
    ]
    for name in sorted(files[0].keys() ^ files[1].keys()):
        print(f"  only one has {name}")
    for name in sorted(files[0].keys() & files[1].keys()):
        was, now = (load_file(side[name]) for side in files)
        if was.keys() != now.keys():
            yield f"{name}: tensors {sorted(was.keys() ^ now.keys())[:3]} are of one only"
        for tensor in was.keys() & now.keys():
            if not was[tensor].equal(now[tensor]):
                yield f"{name}: {tensor} differs"
                break


def _videoopd(tree: Path, *arguments: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "flows.cli", *arguments]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{tree}: {' '.join(command)}\n{done.stdout}\n{done.stderr}")


def _git(*arguments: str) -> None:
    subprocess.run(["git", "-C", str(ROOT), *arguments], check=True)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("give the commit to compare with: make same-as REV=main~3")
    raise SystemExit(main(sys.argv[1]))
