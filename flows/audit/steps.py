"""The link from a checkpoint to the selection that it was trained on."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any

import polars as pl

from flows.audit.named import config_of, examples_of, selected_of
from opd_core.config.load import Config
from opd_core.types import GroundingExample, Rollout
from storage.audit import links as store
from storage.audit.links import BrokenLink, Checked

if TYPE_CHECKING:
    from storage.runs.run import Run


def steps(run: Run) -> Checked:
    """Each optimiser step had the rollouts and tokens that selection, seed and config say."""
    from opd_core.update.student import plan_steps

    store.unique(run, "selections")
    store.unique(run, "updates")
    store.unique(run, "trained_rollouts")
    count, early = 0, []
    for row in store.settled(run):
        version, where = row["parent_version"], f"updates, policy_version {row['policy_version']}"
        config = config_of(run, row["config_hash"])
        taken = selected_of(run, version)
        ours = examples_of(run, version, {r.example_id for r in taken})
        plan = plan_steps(ours, config, version)
        lengths: dict[str, list[int]] = {}
        for rollout in taken:
            lengths.setdefault(rollout.example_id, []).append(len(rollout.completion_token_ids))
        if len(row["steps"]) > len(plan):
            raise BrokenLink.at(where, "the number of steps", len(row["steps"]), len(plan))
        if len(row["steps"]) < len(plan):
            if row["stopped_early"] is None:
                raise BrokenLink.at(where, "the number of steps", len(row["steps"]), len(plan))
            early.append(f"policy {row['policy_version']}: {row['stopped_early']}")
        passes: Counter[str] = Counter()
        for step, batch in zip(row["steps"], plan, strict=False):
            passes.update(e.example_id for e in batch)
            expected = [n for e in batch for n in lengths[e.example_id]]
            for name, value in (("rollouts", len(expected)), ("tokens", sum(expected))):
                if step[name] != value:
                    raise BrokenLink.at(f"{where}, step {step['step']}", name, step[name], value)
        trained = [n for example in passes for n in lengths[example]]
        for name, value in (("rollouts", len(trained)), ("tokens", sum(trained))):
            if row[name] != value:
                raise BrokenLink.at(where, name, row[name], value)
        often = max(passes.values(), default=0)
        if often > config.update.epochs:
            raise BrokenLink.at(where, "passes over a rollout", often, config.update.epochs)
        _first_met(run, row, config, plan[: len(row["steps"])], taken)
        count += len(row["steps"])
    return Checked(count, "steps", tuple(early))


def _first_met(
    run: Run,
    row: dict[str, Any],
    config: Config,
    plan: list[list[GroundingExample]],
    taken: list[Rollout],
) -> None:
    """`trained_rollouts` has each trained rollout, at the step that the plan gives it to first."""
    first: dict[str, int] = {}
    for number, batch in enumerate(plan):
        for example in batch:
            first.setdefault(example.example_id, number)
    this = pl.col("policy_version") == row["parent_version"]
    frame = run.trained_rollouts().filter(this)
    met = {name: (step, logprobs) for name, step, logprobs in frame.select(
        "rollout_id", "step", "student_logprobs").collect().iter_rows()}  # fmt: skip
    largest = row["logprob_bound"] or config.update.max_logprob_mismatch  # older rows have none
    apart: list[float] = []
    for rollout in taken:
        where = f"trained_rollouts, {rollout.rollout_id}"
        step, logprobs = met.pop(rollout.rollout_id, (None, []))
        if step != first.get(rollout.example_id):
            raise BrokenLink.at(where, "step", step, first.get(rollout.example_id))
        expected = len(rollout.completion_token_ids)
        if step is not None and len(logprobs) != expected:
            raise BrokenLink.at(where, "the number of its log-probs", len(logprobs), expected)
        if step == 0 and rollout.answered_by == "student":
            sampled = rollout.sampling_logprobs or ()
            apart += [abs(a - b) for a, b in zip(logprobs, sampled, strict=True)]
            worst = max(apart[-len(sampled) :])
            if largest is None or not worst <= largest:
                bound = f"at most {largest}"
                raise BrokenLink.at(where, "|student - sampling| at step 0", worst, bound)
    for name in met:
        raise BrokenLink(f"trained_rollouts, {name}: it was trained on and not selected")
    if (bound := row["mean_logprob_bound"]) is not None and apart:
        mean = math.fsum(apart) / len(apart)
        if not mean <= bound:
            where = f"trained_rollouts of policy_version {row['parent_version']}"
            raise BrokenLink.at(where, "mean |student - sampling| at step 0", mean,
                                f"at most {bound}")  # fmt: skip
