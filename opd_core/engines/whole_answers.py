"""What an open engine is asked, and that its answer is whole.

An engine of another package may forget a prompt, a sample or a token. That is no fault of an
example, so nothing goes to `quarantine`: the stage stops, and names the engine.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence

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
from opd_core.types import VideoOPDError


def sampled(
    engine: OpenedEngine, videos: Sequence[Sequence[Request]], params: SamplingParams
) -> Mapping[Hashable, Sequence[Sample] | Refused]:
    """`engine.sample`: of every request as many samples as it has seeds, or why it is refused.

    Raises `VideoOPDError` where it is not so.
    """
    requests = [request for video in videos for request in video]
    answers = engine.sample(videos, params) if requests else {}
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


def scored(
    engine: OpenedEngine, videos: Sequence[Sequence[ScoreRequest]], wanted: ScoreSection
) -> Iterator[tuple[Hashable, Scored | Refused]]:
    """`engine.score`: once each answer of every request, with a log-prob a token; or once why the
    request is refused.

    Raises `VideoOPDError` where it is not so.
    """
    requests = {request.key: request for video in videos for request in video}
    missing = {key: tokens for r in requests.values() for key, tokens in r.answers.items()}
    for key, one in engine.score(videos, wanted):
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


def _fault(engine: OpenedEngine, what: str) -> VideoOPDError:
    return VideoOPDError(
        f"the engine {engine.name!r} {what}; repair its package, or set the engine to 'hf'"
    )
