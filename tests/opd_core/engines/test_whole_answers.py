"""An engine that forgets something is named, whoever wrote it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from types import SimpleNamespace
from typing import cast

import pytest

from opd_core.config.sections import ScoreSection
from opd_core.engines.base import (
    OpenedEngine,
    Refused,
    Request,
    Sample,
    SamplingParams,
    Scored,
    ScoreRequest,
)
from opd_core.engines.whole_answers import sampled, scored
from opd_core.prompts.encoder import EncodedPrompt
from opd_core.types import VideoOPDError

Answers = Mapping[Hashable, Sequence[Sample] | Refused]
Scores = list[tuple[Hashable, Scored | Refused]]
PROMPT = cast(EncodedPrompt, None)
SAMPLE = Sample((1,), (-0.5,), "stop")
NO = Refused("too long")


def asked(answers: Answers) -> Answers:
    """What comes of asking for two samples of `a` and of `b`."""
    engine = cast(OpenedEngine, SimpleNamespace(name="theirs", sample=lambda *_: answers))
    videos = [[Request("a", PROMPT, (1, 2))], [Request("b", PROMPT, (1, 2))]]
    return sampled(engine, videos, SamplingParams(1))


def test_all_samples_or_a_refusal_are_whole() -> None:
    answers: Answers = {"a": [SAMPLE, SAMPLE], "b": NO}
    assert asked(answers) == answers


@pytest.mark.parametrize(("answers", "sentence"), [
    ({"a": [SAMPLE] * 2}, "gives no answer to the prompt b"),
    ({"a": [SAMPLE] * 2, "b": [SAMPLE]}, "gives 1 samples of 2 to the prompt b"),
    ({"a": [], "b": NO}, "gives 0 samples of 2 to the prompt a"),
    ({"a": [SAMPLE] * 3, "b": NO}, "gives 3 samples of 2"),
    ({"a": NO, "b": NO, "c": NO}, "answers c, which it was not asked"),
])  # fmt: skip
def test_samples_that_are_not_whole(answers: Answers, sentence: str) -> None:
    with pytest.raises(VideoOPDError, match=f"the engine 'theirs' {sentence}.*repair its package"):
        asked(answers)


def worth(tokens: int) -> Scored:
    return Scored([-0.5] * tokens, None, None, None)


def scores(given: Scores) -> Scores:
    """What comes of scoring two answers to `a`, of one and of two tokens, and one to `b`."""
    engine = cast(OpenedEngine, SimpleNamespace(name="theirs", score=lambda *_: iter(given)))
    videos = [
        [ScoreRequest("a", PROMPT, {"a0": (1,), "a1": (1, 2)})],
        [ScoreRequest("b", PROMPT, {"b0": (1,)})],
    ]
    return list(scored(engine, videos, ScoreSection()))


def test_a_score_an_answer_or_a_refusal_a_prompt_is_whole() -> None:
    given: Scores = [("b", NO), ("a1", worth(2)), ("a0", worth(1))]
    assert scores(given) == given


@pytest.mark.parametrize(("given", "sentence"), [
    ([("a1", worth(2)), ("b", NO)], "gives no score to 1 answers, a0"),
    ([], "gives no score to 3 answers"),
    ([("a0", worth(1)), ("a0", worth(1))], "scores a0, which it was not asked or has answered"),
    ([("c0", worth(1))], "scores c0"),
    ([("a", worth(1))], "scores a, "),
    ([("a0", NO)], "refuses a0, which it was not asked"),
    ([("a0", worth(1)), ("a", NO)], "refuses a, "),
    ([("b", NO), ("b0", worth(1))], "scores b0"),
    ([("a1", worth(1))], "gives 1 log-probs to the 2 tokens of a1"),
])  # fmt: skip
def test_scores_that_are_not_whole(given: Scores, sentence: str) -> None:
    with pytest.raises(VideoOPDError, match=f"the engine 'theirs' {sentence}"):
        scores(given)
