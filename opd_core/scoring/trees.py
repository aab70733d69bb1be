"""Score: the teacher's log-probabilities of the student's rollouts, by the teacher's engine.

The teacher generates nothing. Its prompt must be the very prompt that was answered: token ids,
grid, seconds per grid and pixels of every rollout are compared before anything is computed.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch

from opd_core import faults
from opd_core.cluster.computing import computed
from opd_core.cluster.work import Compute, Examples, Feed, Piece, cut
from opd_core.config.load import Config
from opd_core.engines.base import (
    OpenedEngine,
    Refused,
    Scored,
    ScoreRequest,
    WorksElsewhere,
)
from opd_core.engines.choice import installed_engine, opened_engine, room_for
from opd_core.engines.gate import Gate, gate_of
from opd_core.engines.in_turn import in_turn
from opd_core.engines.whole_answers import scoring
from opd_core.extensions import is_the_trainer
from opd_core.hub.name import model_name
from opd_core.model.agreement import served_dtype
from opd_core.model.prefix_tree import PrefixTree, grow
from opd_core.model.tree_model import choose_device
from opd_core.prompts.batches import EncodedBatch, EncodedExample, ExampleEncoder
from opd_core.prompts.encoder import load_processor, processor_hash, shared_vision
from opd_core.scoring.same_prompt import check_same_prompt
from opd_core.scoring.score_key import content_hash, quantised_text
from opd_core.types import (
    Batch,
    GroundingExample,
    Policy,
    QuarantinedItem,
    Rollout,
    TeacherScore,
    VideoOPDError,
)


def score_rollouts(
    config: Config,
    teacher: Policy,
    work: Sequence[tuple[GroundingExample, Sequence[Rollout]]],
    among: Sequence[GroundingExample] = (),
) -> Iterator[Batch[TeacherScore]]:
    """Scores of the rollouts of each example; sentences of one video are neighbours in `work`,
    which may be what is left of the examples `among`.

    Raises `VideoOPDError` when a rollout was made from another prompt or other pixels than the
    teacher would see.
    """
    rollouts = {example.example_id: tuple(answers) for example, answers in work}
    lengths = (len(r.completion_token_ids) for rows in rollouts.values() for r in rows)
    return score_examples(
        config,
        teacher,
        [example for example, _ in work],
        max(lengths, default=0),
        lambda examples: {e.example_id: rollouts[e.example_id] for e in examples},
        among,
    )


def score_examples(
    config: Config,
    teacher: Policy,
    examples: Sequence[GroundingExample],
    longest: int,
    rollouts_of: Callable[[Sequence[GroundingExample]], Mapping[str, Sequence[Rollout]]],
    among: Sequence[GroundingExample] = (),
) -> Iterator[Batch[TeacherScore]]:
    """As `score_rollouts`, of rollouts that are read batch by batch: `rollouts_of` gives those of
    some examples by example id, each of at most `longest` tokens."""

    def loaded(piece: Piece) -> Piece:
        return replace(piece, answers=rollouts_of(piece.examples))

    plan = cut(examples, config.score.prompts_per_batch, lambda _: True)
    return computed(Scoring(config, teacher, longest + 1), plan, among, loaded)


@dataclass(frozen=True)
class Scoring:
    """A `StageWork`: scores of the rollouts that a piece brings along."""

    config: Config
    policy: Policy
    """The teacher."""
    longest: int
    """Tokens of the longest answer, and the one that vLLM has to generate after it."""

    stage = "score"

    @contextmanager
    def opened(self) -> Iterator[Compute[TeacherScore]]:
        """Encoder and engine."""
        config, teacher, longest = self.config, self.policy, self.longest
        encoder = ExampleEncoder(config, teacher.path)
        with opened_scorer(config, teacher, encoder, longest) as score:
            room = room_for(config, config.teacher.engine, encoder, longest, longest)

            def compute(feed: Feed) -> Iterator[Batch[TeacherScore]]:
                examples = Examples(feed)
                batches = encoder.encode_batches(
                    examples,
                    self.stage,
                    teacher.version,
                    room=room,
                    ahead=not isinstance(score.engine, WorksElsewhere),
                )
                asked: deque[Piece] = deque()

                def ask(encoded: EncodedBatch) -> Callable[[], Iterator[_Score]]:
                    asked.append(examples.taken.popleft())
                    return score.ask(encoded.videos, asked[-1].answers)

                for turn in in_turn(score.engine, batches, ask):
                    yield _batch(turn.encoded, turn.answers(), asked.popleft())

            yield compute


_Score: TypeAlias = TeacherScore | QuarantinedItem


def _batch(encoded: EncodedBatch, answers: Iterator[_Score], piece: Piece) -> Batch[TeacherScore]:
    scores: list[TeacherScore] = []
    quarantined = list(encoded.quarantined)
    for one in answers:
        if isinstance(one, QuarantinedItem):
            quarantined.append(one)
        elif fault := _fault(one):
            version = one.policy_version
            quarantined.append(
                QuarantinedItem(one.rollout_id, "score", None, fault, version, faults.SCORE)
            )
        else:
            scores.append(one)
    return Batch(tuple(scores), tuple(quarantined), len(piece.needed))


@dataclass(frozen=True, slots=True)
class OpenScorer:
    """The teacher's engine, open."""

    engine: OpenedEngine
    config: Config
    teacher: Policy
    encoder: ExampleEncoder
    scorer: str

    def __call__(
        self,
        videos: Sequence[Sequence[EncodedExample]],
        rollouts: Mapping[str, Sequence[Rollout]],
    ) -> Iterator[TeacherScore | QuarantinedItem]:
        """Scores of the `rollouts` (by example id) of each example, then what the engine would not
        take.

        Raises `VideoOPDError` when the engine's prompt is not the one that was answered, or its
        scores are not all that were asked for.
        """
        return self.ask(videos, rollouts)()

    def ask(
        self,
        videos: Sequence[Sequence[EncodedExample]],
        rollouts: Mapping[str, Sequence[Rollout]],
    ) -> Callable[[], Iterator[TeacherScore | QuarantinedItem]]:
        """Hand over, and give what waits for the scores."""
        items = {item.example.example_id: item for video in videos for item in video}
        requests = [[_request(item, rollouts) for item in video] for video in videos]
        answers = scoring(self.engine, requests, self.config.score)
        return lambda: self._checked(items, rollouts, answers())

    def _checked(
        self,
        items: Mapping[str, EncodedExample],
        rollouts: Mapping[str, Sequence[Rollout]],
        answers: Iterator[tuple[Hashable, Scored | Refused]],
    ) -> Iterator[TeacherScore | QuarantinedItem]:
        engine, config, encoder = self.engine, self.config, self.encoder
        by_id = {r.rollout_id: r for name in items for r in rollouts[name]}
        reasons: dict[str, str] = {}
        check: Gate | None = None
        for key, one in answers:
            if isinstance(one, Refused):
                reasons[str(key)] = one.reason
                continue
            rollout = by_id[str(key)]
            if not is_the_trainer(engine.name):
                check = check or gate_of(encoder, config.rollout.max_new_tokens)
                if fault := _prompt_fault(check, items[rollout.example_id], one):
                    raise VideoOPDError(
                        f"{engine.name} scored rollout {rollout.rollout_id} on another prompt than "
                        f"ours ({fault}); set teacher.engine = 'hf'"
                    )
            yield _score(self.teacher, rollout, one, self.scorer)
        if len(reasons) == len(items) > 1:
            raise VideoOPDError(
                f"{engine.name} would take none of {len(items)} prompts to score "
                f"({next(iter(reasons.values()))}); correct its settings, [{engine.name}], or set "
                "teacher.engine = 'hf'"
            )
        for name, reason in reasons.items():
            yield QuarantinedItem(
                name,
                "score",
                items[name].example.video_path,
                f"{engine.name}: {reason}",
                self.teacher.version,
                faults.ENGINE,
            )


@contextmanager
def opened_scorer(
    config: Config,
    teacher: Policy,
    encoder: ExampleEncoder,
    longest: int,
) -> Iterator[OpenScorer]:
    """What scores answers of at most `longest` tokens, by the teacher's engine."""
    scorer = describe_scorer(config, encoder.processor_hash)
    settings = config.teacher
    with opened_engine(
        config, settings.engine, teacher.path, settings.dtype, encoder, longest, settings.quantise
    ) as engine:
        yield OpenScorer(engine, config, teacher, encoder, scorer)


def _request(item: EncodedExample, rollouts: Mapping[str, Sequence[Rollout]]) -> ScoreRequest:
    answers = rollouts[item.example.example_id]
    for rollout in answers:
        check_same_prompt(item, rollout)
    return ScoreRequest(
        item.example.example_id,
        item.prompt,
        {r.rollout_id: r.completion_token_ids for r in answers},
    )


def _prompt_fault(gate: Gate, item: EncodedExample, one: Scored) -> str | None:
    if one.prompt is None:
        return "it does not say which"
    return gate.prompt_fault(item, one.prompt)


def _score(teacher: Policy, rollout: Rollout, one: Scored, scorer: str) -> TeacherScore:
    return TeacherScore(
        rollout_id=rollout.rollout_id,
        policy_version=rollout.policy_version,
        teacher_id=model_name(teacher.path),
        teacher_hash=teacher.weights_hash,
        teacher_logprobs=one.logprobs,
        topk_token_ids=one.topk_token_ids,
        topk_logprobs=one.topk_logprobs,
        tail_logprobs=one.tail_logprobs,
        teacher_entropies=one.entropies,
        hidden_states=one.hidden_states,
        scorer=scorer,
        content_hash=content_hash(scorer, teacher.weights_hash, rollout),
        reused_from=None,
        seconds=one.seconds,
    )


def describe_scorer(config: Config, processor: str) -> str:
    """All that changes a score beside weights and content, in words; part of its content hash.

    `processor` is the hash of the teacher's processor. How rollouts were packed is not in it: that
    is within float32 rounding.
    """
    teacher, score = config.teacher, config.score
    stored = [f"top-k {score.teacher_topk}"]
    stored += ["entropy"] if score.teacher_entropy else []
    stored += ["hidden states"] if score.hidden_states else []
    device = choose_device(config.machine.device).type
    engine = installed_engine(teacher.engine)
    assert engine.scorer is not None, "the config was held against it"
    named, attention = engine.scorer(config)
    dtype = served_dtype(config, teacher.engine, teacher.dtype)
    settings = config.foreign_settings(teacher.engine)
    told = [] if settings is None else [f"settings {json.dumps(settings, sort_keys=True)}"]
    weights = [] if teacher.quantise == "none" else [quantised_text(teacher.quantise)]
    parts = (named, f"torch {torch.__version__}", device, dtype, *weights, attention)
    return "; ".join((*parts, *told, *stored, f"processor {processor}"))


def teacher_scorer(config: Config) -> str:
    """`describe_scorer` for the config's teacher, whose processor is read. The head of a cluster
    may have no card where its workers, which score, have some: there they are asked."""
    cluster, device = config.cluster, config.machine.device
    may_differ = cluster is not None and cluster.address is not None and device != "cpu"
    if may_differ and not torch.cuda.is_available():
        from opd_core.cluster.machines import on_a_worker

        return on_a_worker(config, _scorer_here, config)
    return _scorer_here(config)


def _scorer_here(config: Config) -> str:
    return describe_scorer(config, processor_hash(load_processor(config.teacher.path)))


def rollout_tree(video: Sequence[EncodedExample], rollouts: dict[str, list[Rollout]]) -> PrefixTree:
    """The tree of one video's sentences and their rollouts, keyed by rollout id."""
    for item in video:
        for rollout in rollouts[item.example.example_id]:
            check_same_prompt(item, rollout)
    return grow(
        [item.prompt.token_ids for item in video],
        [
            [(r.rollout_id, r.completion_token_ids) for r in rollouts[item.example.example_id]]
            for item in video
        ],
        shared_vision([item.prompt for item in video]),
    )


def _fault(score: TeacherScore) -> str | None:
    for position, logprob in enumerate(score.teacher_logprobs):
        if not math.isfinite(logprob):
            return f"the teacher's log-prob of token {position} is {logprob}"
    return None
