"""Our columns under names that users know: TRL's at top level, verl's in groups, ours in `tvg/`.

One table. A name stands for one thing on one axis; a number that means something else than the name
does elsewhere has a name of its own (`kl` is the distance to a reference policy in TRL, so the one
to the teacher is `teacher_kl`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from flows.numbers import rounds, stages, steps
from opd_core.spans.metrics import no_span, per_example
from opd_core.spans.protocols.known import PROTOCOLS
from storage.stages import ROUND


@dataclass(frozen=True, slots=True)
class Name:
    """What a tracker calls a column of `flows/numbers`."""

    name: str
    column: str
    known_from: str = ""
    """The trainer whose users know the name; empty: ours."""
    means: str = ""
    """Where the column's own text is not all."""


TRL, VERL = "TRL", "verl"

STEPS = (
    Name("loss", "loss", TRL),
    Name("grad_norm", "grad_norm", TRL),
    Name("learning_rate", "learning_rate", TRL),
    Name("teacher_kl", "teacher_kl"),
    Name("sampling/importance_sampling_ratio/mean", "tis_weight_mean", TRL),
    Name("step_time", "seconds", TRL),
    Name("tvg/policy_kl", "policy_kl"),
    Name("tvg/ratio/min", "ratio_min"),
    Name("tvg/ratio/max", "ratio_max"),
    Name("tvg/effective_sample_size", "effective_sample_size"),
    Name("tvg/tis_truncated", "tis_truncated"),
    Name("tvg/step_tokens", "tokens"),
    Name("tvg/step_rollouts", "rollouts"),
)
"""Of `steps`, on the axis `step`."""

ROUNDS = (
    Name("reward", "mean_iou", TRL, "The reward is the temporal IoU."),
    Name("reward_std", "iou_std", TRL),
    Name("frac_reward_zero_std", "iou_std_zero", TRL),
    Name("entropy", "entropy", TRL),
    Name("completions/mean_length", "mean_length", TRL),
    Name("completions/min_length", "min_length", TRL),
    Name("completions/max_length", "max_length", TRL),
    Name("completions/clipped_ratio", "clipped", TRL),
    Name("sampling/sampling_logp_difference/mean", "logprob_mismatch", TRL),
    Name("sampling/sampling_logp_difference/max", "logprob_mismatch_max", TRL),
    Name("distillation/loss", "loss", VERL),
    Name("distillation/teacher_kl", "teacher_kl"),
    Name("distillation/teacher_logprob", "teacher_logprob"),
    Name("tvg/rollouts", "rollouts"),
    Name("tvg/rollouts_no_span", "without_span"),
    Name("tvg/trained_rollouts", "trained_rollouts"),
    Name("tvg/trained_tokens", "trained_tokens"),
    Name("tvg/round_effective_sample_size", "effective_sample_size"),
    Name("tvg/moved_share", "moved_share"),
    Name("tvg/quarantined", "quarantined"),
    Name("tvg/eval_examples", "eval_examples"),
    Name("focus/considered", "considered"),
    Name("focus/selected", "selected"),
    Name("focus/disagreement", "disagreement"),
    Name("focus/disagreement_selected", "disagreement_selected"),
)
"""Of `rounds`, on the axis `round`; with `metrics()`."""

MADE = {
    "epoch": (TRL, "Examples drawn so far / training examples."),
    "num_tokens": (TRL, "Tokens that passed through models so far, up to the round's update."),
    "perf/total_num_tokens": (VERL, "The same of the round."),
    "perf/time_per_step": (VERL, "Seconds of the round's stages up to its update."),
    "timing_s/step": (VERL, "The same."),
    "perf/max_memory_allocated_gb": (VERL, "Most that a stage held on the accelerator, GiB."),
    "perf/cpu_memory_used_gb": (VERL, "Most that a stage's process held, where it was measured."),
}
"""On the axis `round`, of `stages` and `draws`."""

_OF_STAGES = {"rollout": "gen", "update": "update_actor", "evaluate": "testing"}
"""What verl calls them."""


def timing(stage: str) -> str:
    """The name of a stage's seconds.

    >>> timing("rollout"), timing("score")
    ('timing_s/gen', 'timing_s/score')
    """
    return f"timing_s/{_OF_STAGES.get(stage, stage)}"


def reason(text: str) -> str:
    """The name of the number of rollouts for which focus gave this reason.

    >>> reason("disagreement outside top k")
    'focus/reasons/disagreement_outside_top_k'
    """
    return f"focus/reasons/{re.sub(r'[^A-Za-z0-9.-]+', '_', text).strip('_')}"


def metrics() -> tuple[Name, ...]:
    """Of `rounds`: each metric of each evaluation protocol, and the ends of mIoU's interval."""
    return tuple(_metrics())


def _metrics() -> Iterator[Name]:
    silent = {no_span(name): name for name in reversed(list(PROTOCOLS))}
    for column in per_example():
        if column in silent:
            protocol = silent[column]
            strict = PROTOCOLS[protocol].reader is None
            yield Name("tvg/no_span" if strict else f"tvg/no_span/{protocol}", column)
            continue
        protocol = max((p for p in PROTOCOLS if column.startswith(f"{p}_")), key=len)
        end = column.removeprefix(f"{protocol}_")
        title = PROTOCOLS[protocol].metrics[end].lower()
        yield Name(f"tvg/{title}/{protocol}", column)
        if end == "miou":
            for side in ("low", "high"):
                yield Name(f"tvg/{title}/{protocol}/{side}", f"{column}_{side}")


def listed() -> list[tuple[str, str, str, str]]:
    """(name, axis, known from, what it means) of all, for the page about trackers."""
    of_steps, of_rounds = steps.columns(), rounds.columns()
    rows = [(n.name, "step", n.known_from, n.means or of_steps[n.column]) for n in STEPS]
    rows.append(("perf/throughput", "step", VERL, "Trained tokens a second of the step."))
    rows += [
        (n.name, "round", n.known_from, n.means or of_rounds[n.column])
        for n in (*ROUNDS, *metrics())
    ]
    rows.append(("focus/reasons/...", "round", "", "Rollouts for which focus gave this reason."))
    rows += [(name, "round", whose, means) for name, (whose, means) in MADE.items()]
    seconds = stages.columns()["seconds"]
    rows += [
        (
            timing(s.name),
            "round",
            VERL if s.name in _OF_STAGES else "",
            f"{seconds} Stage {s.name}.",
        )
        for s in ROUND
    ]
    return rows
