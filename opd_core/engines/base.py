"""What an engine is asked for, what it answers, and how a token is drawn.

An engine gets the prompts of one video next to each other, so that it can compute their common
prefix once. A row's random numbers come from its own seed, so what is sampled does not depend on
which rows it was sampled with.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from opd_core.prompts.encoder import EncodedPrompt

if TYPE_CHECKING:
    from torch import Tensor

    from opd_core.config.sections import ScoreSection

PIXEL_SAMPLE = 64


@dataclass(frozen=True, slots=True)
class SamplingParams:
    max_new_tokens: int
    greedy: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0: off."""


@dataclass(frozen=True, slots=True)
class Request:
    """`len(seeds)` answers to one prompt."""

    key: Hashable
    prompt: EncodedPrompt
    seeds: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SeenPrompt:
    """What an engine really answered, for the gate of `gate.py` to compare with ours."""

    token_ids: tuple[int, ...]
    grid_thw: tuple[int, int, int]
    pixels: tuple[float, ...]
    """`pixel_sample` of the normalised pixels that its vision tower got."""
    pixel_hash: str | None = None
    """Of the uint8 frames, where the engine got frames."""
    second_per_grid: float | None = None
    """Seconds between vision tokens, where its positions count them."""
    answer_position: int | None = None
    """Where it put the first token of the answer."""
    tells_position: bool = True
    """Whether it can say that: a server cannot."""


def pixel_sample(patches: Tensor) -> tuple[float, ...]:
    """`PIXEL_SAMPLE` values of [patches, ...], spread evenly over eight patches."""
    rows = patches[sample_rows(len(patches))].flatten()
    return tuple(rows[:: max(1, len(rows) // PIXEL_SAMPLE)][:PIXEL_SAMPLE].float().tolist())


def sample_rows(count: int) -> list[int]:
    """The patches of `pixel_sample`, of `count`."""
    return sorted({i * count // 8 for i in range(8)})


@dataclass(frozen=True, slots=True)
class Sample:
    token_ids: tuple[int, ...]
    """The end token included, when there is one."""
    logprobs: tuple[float, ...]
    """Of each token, under the model's own distribution (temperature 1, nothing truncated)."""
    finish_reason: str
    """`stop` or `length`."""
    prompt: SeenPrompt | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """What an engine gives instead of answers to a prompt that it would not take."""

    reason: str


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """Answers to one prompt, to be scored."""

    key: Hashable
    prompt: EncodedPrompt
    answers: Mapping[Hashable, Sequence[int]]
    """Key of an answer -> its token ids."""


@dataclass(frozen=True, slots=True)
class Scored:
    """What a model makes of the T tokens of one answer, K tokens kept at each."""

    logprobs: Sequence[float]
    """[T], under the model's own distribution."""
    topk_token_ids: Sequence[Sequence[int]] | None
    """[T, K], likeliest first; None where none were asked for."""
    topk_logprobs: Sequence[Sequence[float]] | None
    tail_logprobs: Sequence[float] | None
    """[T]: log of the mass that is not in the top-k."""
    entropies: Sequence[float] | None = None
    """[T], nats."""
    hidden_states: Sequence[Any] | None = None
    """[T, D], those before lm_head, arrays."""
    prompt: SeenPrompt | None = None
    """None only of an engine that is the trainer's own forward pass: it is given our own prompt."""
    seconds: float = 0.0
    """This answer's share of the time it took."""


class OpenedEngine(Protocol):
    """What samples from one policy, and may score; opened for one stage by `engines/choice.py`."""

    name: str
    """As in the config."""

    @property
    def version(self) -> str: ...

    def sample(
        self, videos: Sequence[Sequence[Request]], params: SamplingParams
    ) -> Mapping[Hashable, Sequence[Sample] | Refused]:
        """Answers by request key; the requests of one inner sequence share a video."""
        ...

    def score(
        self, videos: Sequence[Sequence[ScoreRequest]], wanted: ScoreSection
    ) -> Iterator[tuple[Hashable, Scored | Refused]]:
        """(key of an answer, what it is worth), or (key of a request, why it was not taken); asked
        only where `extensions.Engine.scorer` says that the engine can. `wanted`: what is kept."""
        ...


@runtime_checkable
class WorksElsewhere(Protocol):
    """What an `OpenedEngine` in another process can besides: it takes the next prompts while it
    answers the last, and answers in the order in which it was asked. (Not its subclass: to look
    whether one is there would wait for its `version`.)"""

    def begin_sampling(
        self, videos: Sequence[Sequence[Request]], params: SamplingParams
    ) -> Callable[[], Mapping[Hashable, Sequence[Sample] | Refused]]:
        """Hand over, and give what waits for the answers of `sample`."""
        ...

    def begin_scoring(
        self, videos: Sequence[Sequence[ScoreRequest]], wanted: ScoreSection
    ) -> Callable[[], Iterator[tuple[Hashable, Scored | Refused]]]:
        """Hand over, and give what waits for the answers of `score`."""
        ...


def uniforms(seeds: Sequence[int], length: int) -> Tensor:
    """[len(seeds), length] float64 in [0, 1); each row depends on its seed only."""
    import torch

    rows = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        rows.append(torch.rand(length, generator=generator, dtype=torch.float64))
    return torch.stack(rows)


def draw_tokens(logprobs_BV: Tensor, uniforms_B: Tensor, params: SamplingParams) -> Tensor:
    """[B] token ids by inverting the cumulative distribution at `uniforms_B`; or the likeliest."""
    if params.greedy:
        return logprobs_BV.argmax(dim=1)
    logits = logprobs_BV.double() / params.temperature
    if params.top_k:
        kth = logits.topk(params.top_k, dim=1).values[:, -1:]
        logits = logits.masked_fill(logits < kth, float("-inf"))
    probs = logits.softmax(dim=1)
    if params.top_p < 1.0:
        ordered, order = probs.sort(dim=1, descending=True)
        beyond = ordered.cumsum(dim=1) - ordered >= params.top_p
        probs = probs.masked_fill(beyond.scatter(1, order, beyond), 0.0)
    cumulative = probs.cumsum(dim=1)
    targets = uniforms_B.to(cumulative)[:, None] * cumulative[:, -1:]
    import torch

    # NaN is beyond every entry; its log-prob is NaN again, for which the caller looks.
    tokens_B = torch.searchsorted(cumulative, targets, right=True)[:, 0]
    return tokens_B.clamp(max=cumulative.shape[1] - 1)
