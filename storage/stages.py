"""The stages of a round, in order: what each does, what it reads, whose number its rows carry.

The one list of them: the choices of the command line, the deployments, the table of what a round
took, and what a stage that is run again makes stale are made of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True, slots=True)
class Stage:
    name: str
    about: str
    """What it does alone, a sentence: of its deployment."""
    reads: tuple[str, ...] = ()
    """Stages whose rows it is computed from."""
    of_made_policy: bool = False
    """It works with the policy that the round makes; the others with the one it samples from."""
    once: str = ""
    """Why it cannot be run again: its rows are of no round, and nothing supersedes them."""


ROUND = (
    Stage("draw", "Choose the round's examples, if it has none yet; by force, others."),
    Stage(
        "validate",
        "Ask the teacher for its own answers to the round's examples that have none.",
        reads=("draw",),
        once="the teacher answers an example and a question once, with one seed, so forcing it "
        "would give the same answers; leave out force, or ask another question (another "
        "teacher.predictions, prompt or frame rate)",
    ),
    Stage(
        "rollout",
        "Sample the answers that are still missing of the round's policy.",
        reads=("draw", "validate"),
    ),
    Stage(
        "score",
        "Have the teacher score the round's rollouts that have no score yet.",
        reads=("draw", "validate", "rollout"),
    ),
    Stage(
        "focus",
        "Select the rollouts to train on, if the round has no selection yet.",
        reads=("draw", "validate", "rollout", "score"),
    ),
    Stage(
        "update",
        "Train on the round's selection and commit the next policy, if that is still to be done.",
        reads=("draw", "rollout", "score", "focus"),
    ),
    Stage(
        "evaluate",
        "Answer the evaluation examples that the policy has not answered yet; how well, in "
        "`notes`.",
        reads=("update",),
        of_made_policy=True,
    ),
)
"""In order."""
RESCORE = Stage(
    "rescore",
    "Compute exact divergences of rollouts whose scores kept the teacher's hidden states.",
    reads=("rollout", "score"),
)
"""No stage of a round: it can be done at any time after, and nothing is computed from its rows."""
STAGES = tuple(stage.name for stage in ROUND)
"""Names, in order."""
_EVERY = (*ROUND, RESCORE)
_BY_NAME = {stage.name: stage for stage in _EVERY}
_OF_MADE_POLICY = {stage.name for stage in _EVERY if stage.of_made_policy}


def stage_named(name: str) -> Stage:
    return _BY_NAME[name]


def place(name: str) -> int:
    """Index of a stage in the order; a rescore comes last."""
    return _EVERY.index(_BY_NAME[name])


@cache
def makes_stale(name: str) -> tuple[str, ...]:
    """The stages that are computed from a stage's rows of the same round, also through others.

    Those of another policy's rows are not among them: an update that is run again supersedes all
    of them.

    >>> makes_stale("draw"), makes_stale("score"), makes_stale("update")
    (('rollout', 'score', 'focus', 'update', 'rescore'), ('focus', 'update', 'rescore'), ())
    """
    stale = [name]
    for stage in _EVERY:
        if not (stage.once or stage.of_made_policy) and set(stale) & set(stage.reads):
            stale.append(stage.name)
    return tuple(stale[1:])


def stage_command(stage: str, config: str, round: int, force: bool = False) -> str:
    """What runs a stage of a round; `config` as one types it.

    >>> stage_command("score", "tiny.toml", 2, force=True)
    'videoopd stage score tiny.toml --round 2 --force'
    """
    name = stage if stage == RESCORE.name else f"stage {stage}"
    return f"videoopd {name} {config} --round {round}{' --force' if force else ''}"


def round_number(stage: str, policy_version: int) -> int:
    """What people call the round: the number of the policy that it makes.

    Rows carry the policy that a stage works with. A round samples from policy v, makes policy
    v + 1, and evaluates what it made.

    >>> round_number("update", 2), round_number("evaluate", 3)
    (3, 3)
    """
    return policy_version + (stage not in _OF_MADE_POLICY)


def policy_version_of(stage: str, round: int) -> int:
    """The inverse: of the policy that a stage of round `round` works with."""
    return round - (stage not in _OF_MADE_POLICY)
