"""What an open engine is asked, and that its answer is whole.

An engine of another package may forget a prompt, a sample or a token. That is no fault of an
example, so nothing goes to `quarantine`: the stage stops, and names the engine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

from opd_core.config.sections import ScoreSection
from opd_core.engines import idle_time
from opd_core.engines.base import (
    OpenedEngine,
    Refused,
    Request,
    Sample,
    SamplingParams,
    Scored,
    ScoreRequest,
    WorksElsewhere,
)
from opd_core.types import VideoOPDError

T = TypeVar("T")


def sampling(
    engine: OpenedEngine, videos: Sequence[Sequence[Request]], params: SamplingParams
) -> Callable[[], Mapping[Hashable, Sequence[Sample] | Refused]]:
    """What waits for `sampled`: an engine that works elsewhere is asked now, others then."""
    begun = None
    if isinstance(engine, WorksElsewhere) and any(videos):
        begun = engine.begin_sampling(videos, params)
    return lambda: sampled(engine, videos, params, begun)


def sampled(
    engine: OpenedEngine,
    videos: Sequence[Sequence[Request]],
    params: SamplingParams,
    begun: Callable[[], Mapping[Hashable, Sequence[Sample] | Refused]] | None = None,
) -> Mapping[Hashable, Sequence[Sample] | Refused]:
    """`engine.sample`: of every request as many samples as it has seeds, or why it is refused.
    `begun`: it was asked already.

    Raises `VideoOPDError` where it is not so.
    """
    requests = [request for video in videos for request in video]
    with _working(engine):
        answers = (begun or partial(engine.sample, videos, params))() if requests else {}
    for request in requests:
        given, wanted = answers.get(request.key), len(request.seeds)
        if given is None:
            raise _fault(engine, f"gives no answer to the prompt {request.key}")
        if not isinstance(given, Refused) and len(given) != wanted:
            raise _fault(
                engine, f"gives {len(given)} samples of {wanted} to the prompt {request.key}"
            )
    if more := answers.keys() - {request.key for request in requests}:
        raise _fault(engine, f"answers {next(iter(more))}, which it was not asked")
    return answers


def scoring(
    engine: OpenedEngine, videos: Sequence[Sequence[ScoreRequest]], wanted: ScoreSection
) -> Callable[[], Iterator[tuple[Hashable, Scored | Refused]]]:
    """What waits for `scored`: an engine that works elsewhere is asked now, others then."""
    begun = None
    if isinstance(engine, WorksElsewhere) and any(videos):
        begun = engine.begin_scoring(videos, wanted)
    return lambda: scored(engine, videos, wanted, begun)


def scored(
    engine: OpenedEngine,
    videos: Sequence[Sequence[ScoreRequest]],
    wanted: ScoreSection,
    begun: Callable[[], Iterator[tuple[Hashable, Scored | Refused]]] | None = None,
) -> Iterator[tuple[Hashable, Scored | Refused]]:
    """`engine.score`: once each answer of every request, with a log-prob a token; or once why the
    request is refused. `begun`: it was asked already.

    Raises `VideoOPDError` where it is not so.
    """
    requests = {request.key: request for video in videos for request in video}
    missing = {key: tokens for r in requests.values() for key, tokens in r.answers.items()}
    answers = (begun or partial(engine.score, videos, wanted))()
    for key, one in _each_timed(engine, answers):
        if isinstance(one, Refused):
            if key not in requests or not missing.keys() >= requests[key].answers.keys():
                raise _fault(engine, f"refuses {key}, which it was not asked or has scored")
            for answer in requests[key].answers:
                del missing[answer]
        else:
            if key not in missing:
                raise _fault(engine, f"scores {key}, which it was not asked or has answered")
            tokens = len(missing.pop(key))
            if len(one.logprobs) != tokens:
                raise _fault(
                    engine, f"gives {len(one.logprobs)} log-probs to the {tokens} tokens of {key}"
                )
        yield key, one
    if missing:
        raise _fault(engine, f"gives no score to {len(missing)} answers, {next(iter(missing))}")


def _each_timed(engine: OpenedEngine, answers: Iterable[T]) -> Iterator[T]:
    rest = iter(answers)
    while True:
        with _working(engine):
            answer = next(rest, None)
        if answer is None:
            return
        yield answer


@contextmanager
def _working(engine: OpenedEngine) -> Iterator[None]:
    """Count the time of the block, unless the engine counts its own."""
    began = time.perf_counter()
    yield
    if not isinstance(engine, WorksElsewhere):
        idle_time.passed(working=time.perf_counter() - began)


def _fault(engine: OpenedEngine, what: str) -> VideoOPDError:
    return VideoOPDError(
        f"the engine {engine.name!r} {what}; repair its package, or set the engine to 'hf'"
    )
