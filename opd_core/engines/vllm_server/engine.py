"""A vLLM server behind our engine protocol: it scores, and answers, by requests.

What it cannot say of itself is proven otherwise or refused. Token ids, grid and pixels are what its
own processor gives back (`prompt.py`), and the gate compares them with ours; where it puts the
tokens and which weights it holds, nobody is told: so the answers to the first prompt, its own or
those that it scores, are compared with a forward pass of the teacher's own weights, where they are
on this machine.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from opd_core.config.load import Config
from opd_core.config.sections import ScoreSection
from opd_core.engines.base import (
    Refused,
    Request,
    Sample,
    SamplingParams,
    Scored,
    ScoreRequest,
)
from opd_core.engines.tail import tail_logprob
from opd_core.engines.vllm_server.connection import Connection, PromptRefusedError, understood
from opd_core.engines.vllm_server.distribution import Listed, allowed
from opd_core.engines.vllm_server.prompt import Rendered, rendered
from opd_core.engines.vllm_server.section import VLLMServerSection
from opd_core.model.agreement import bound_for
from opd_core.model.published import generation_config
from opd_core.model.vocabulary import end_token_ids, excluded_token_ids
from opd_core.prompts.batches import ExampleEncoder
from opd_core.prompts.encoder import EncodedPrompt
from opd_core.types import VideoOPDError

Asked = TypeVar("Asked", Request, ScoreRequest)
Given = TypeVar("Given")
Said: TypeAlias = Mapping[Hashable, tuple[Sequence[int], Sequence[float]]]
"""Token ids of each answer to a prompt, and what the server makes of them."""
LEAST_LOGPROB = -9999.0
"""What vLLM writes for minus infinity."""


class ServerEngine:
    """The model that a server has under one name."""

    name = "vllm_server"

    def __init__(
        self,
        config: Config,
        settings: VLLMServerSection,
        folder: Path,
        dtype: str,
        encoder: ExampleEncoder,
    ) -> None:
        self._config, self._settings = config, settings
        self._folder, self._dtype, self._encoder = folder, dtype, encoder
        self._connection = Connection(settings)
        self.model, self._room = served(self._connection, settings)
        self.version = f"vllm {self._connection.version()}"
        self._family = encoder.prompts.architecture
        tokenizer = encoder.prompts.tokenizer
        size = encoder.prompts.vocabulary_size
        self._excluded = frozenset(excluded_token_ids(tokenizer, size, self._family.placeholders))
        self._size = size
        self._listed = min(settings.listed, size)
        self._ends = sorted(end_token_ids(generation_config(folder), tokenizer))
        device = config.machine.device
        bound = bound_for(None, [dtype], "cpu" if device == "cpu" else "cuda")
        self._sure = bound.largest if bound.mean is None else bound.mean
        self._compared = not (settings.compare and has_weights(folder))

    def sample(
        self, videos: Sequence[Sequence[Request]], params: SamplingParams
    ) -> Mapping[Hashable, Sequence[Sample] | Refused]:
        wanted = {
            "temperature": 0.0 if params.greedy else params.temperature,
            "top_p": 1.0 if params.greedy else params.top_p,
            "top_k": 0 if params.greedy else params.top_k,
            "max_tokens": params.max_new_tokens,
            "stop_token_ids": self._ends,
            "logprobs": self._listed,
            "logit_bias": {str(token): -100.0 for token in self._excluded},
            "detokenize": False,
        }

        def ask(request: Request, prompt: Rendered) -> tuple[list[Sample], Said]:
            samples = [
                self._sample(prompt, self._generate(prompt, [], {**wanted, "seed": seed}))
                for seed in request.seeds
            ]
            return samples, {n: (s.token_ids, s.logprobs) for n, s in enumerate(samples)}

        return dict(self._each(videos, params.max_new_tokens, ask))

    def score(
        self, videos: Sequence[Sequence[ScoreRequest]], wanted: ScoreSection
    ) -> Iterator[tuple[Hashable, Scored | Refused]]:
        # Besides the top-k, some of what is listed may be what nobody may say.
        listed = max(self._listed, wanted.teacher_topk + len(self._family.placeholders))
        listed = min(listed, self._size)
        params = {"temperature": 0.0, "max_tokens": 1, "prompt_logprobs": listed,
                  "detokenize": False}  # fmt: skip

        def ask(request: ScoreRequest, prompt: Rendered) -> tuple[dict[Hashable, Scored], Said]:
            scored: dict[Hashable, Scored] = {}
            for key, token_ids in request.answers.items():
                began = time.perf_counter()
                reply = self._generate(prompt, token_ids, params)
                one = self._scored(prompt, token_ids, reply, wanted.teacher_topk)
                scored[key] = replace(one, seconds=time.perf_counter() - began)
            return scored, {k: (request.answers[k], one.logprobs) for k, one in scored.items()}

        longest = max(
            (len(ids) for v in videos for r in v for ids in r.answers.values()), default=0
        )
        for key, given in self._each(videos, longest + 1, ask):
            if isinstance(given, Refused):
                yield key, given
            else:
                yield from given.items()

    def _each(
        self,
        videos: Sequence[Sequence[Asked]],
        new_tokens: int,
        ask: Callable[[Asked, Rendered], tuple[Given, Said]],
    ) -> Iterator[tuple[Hashable, Given | Refused]]:
        """(key of a request, what `ask` makes of it or why it was not taken), in order; some
        requests are on their way at once."""

        def one(request: Asked) -> Given | Refused:
            try:
                with understood(self._connection.address):
                    prompt = rendered(
                        self._connection, self.model, request.prompt, self._encoder.prompts
                    )
                    if self._room and len(prompt.token_ids) + new_tokens > self._room:
                        return Refused(
                            f"prompt and answer are {len(prompt.token_ids)} + {new_tokens} tokens, "
                            f"and the server has room for {self._room} (--max-model-len)"
                        )
                    given, said = ask(request, prompt)
            except PromptRefusedError as error:
                return Refused(str(error))
            if prompt.seen.token_ids == request.prompt.token_ids:  # else the gate says why not
                self._compare(request.prompt, said)
            return given

        requests = [request for video in videos for request in video]
        while requests and not self._compared:  # before others are asked in vain
            yield requests[0].key, one(requests.pop(0))
        with ThreadPoolExecutor(self._settings.together) as pool:
            try:
                yield from zip((r.key for r in requests), pool.map(one, requests), strict=True)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _generate(
        self, prompt: Rendered, completion: Sequence[int], params: Mapping[str, Any]
    ) -> dict[str, Any]:
        token_ids = [*prompt.token_ids, *completion]
        reply = self._connection.generate(
            {
                "model": self.model,
                "token_ids": token_ids,
                "features": prompt.features,
                "sampling_params": dict(params),
                "return_token_ids": True,
            }
        )
        if list(reply["prompt_token_ids"]) != token_ids:
            raise VideoOPDError(
                f"the vLLM server at {self._connection.address} has answered another prompt than "
                "it was sent; take another version of vLLM"
            )
        return reply

    def _scored(
        self, prompt: Rendered, token_ids: Sequence[int], reply: Mapping[str, Any], topk: int
    ) -> Scored:
        rows = reply["prompt_logprobs"][len(prompt.token_ids) :]
        each = [
            self._allowed(
                {int(token): at["logprob"] for token, at in row.items()},
                [int(token) for token, at in row.items() if at["rank"] <= self._likeliest(row)],
            )
            for row in rows
        ]
        own = tuple(
            listed.logprobs.get(token, -math.inf)
            for token, listed in zip(token_ids, each, strict=True)
        )
        width = min(topk, self._size - len(self._excluded))
        if any(len(listed.logprobs) < width for listed in each):
            raise PromptRefusedError(
                f"of what the server lists, fewer than {width} tokens may be said; raise "
                f"vllm_server.listed (now {self._settings.listed}) and the server's --max-logprobs"
            )
        top = [list(listed.logprobs.items())[:width] for listed in each]
        logprobs = [tuple(p for _, p in row) for row in top]
        return Scored(
            logprobs=own,
            topk_token_ids=[tuple(token for token, _ in row) for row in top] if topk else None,
            topk_logprobs=logprobs if topk else None,
            tail_logprobs=[tail_logprob(row) for row in logprobs] if topk else None,
            prompt=prompt.seen,
        )

    @staticmethod
    def _likeliest(row: Mapping[str, Any]) -> int:
        """How many of the likeliest are listed: one that is listed besides has a later rank."""
        ranks = {at["rank"] for at in row.values()}
        return next(rank for rank in range(len(row), 0, -1) if rank in ranks)

    def _sample(self, prompt: Rendered, reply: Mapping[str, Any]) -> Sample:
        (choice,) = reply["choices"]
        token_ids = tuple(int(token) for token in choice["token_ids"])
        logprobs = []
        for _, at in zip(token_ids, choice["logprobs"]["content"], strict=True):
            entries = {e["token_id"]: e["logprob"] for e in (at, *at["top_logprobs"])}
            likeliest = [e["token_id"] for e in at["top_logprobs"][1:]] or [at["token_id"]]
            listed = self._allowed(entries, likeliest)
            logprobs.append(listed.logprobs.get(at["token_id"], -math.inf))
        ended = bool(token_ids) and token_ids[-1] in self._ends
        reason = "stop" if ended else str(choice["finish_reason"])
        return Sample(token_ids, tuple(logprobs), reason, prompt.seen)

    def _allowed(self, entries: dict[int, float], likeliest: Iterable[int]) -> Listed:
        entries = {t: -math.inf if p <= LEAST_LOGPROB else p for t, p in entries.items()}
        listed = allowed(entries, list(likeliest), self._excluded, self._size)
        if not listed.off_by <= self._sure:
            raise PromptRefusedError(
                "tokens that nobody may say, and that the server does not list, may make a "
                f"log-prob {listed.off_by:.2g} nats too small; raise vllm_server.listed (now "
                f"{self._settings.listed}) and the server's --max-logprobs"
            )
        return listed

    def _compare(self, prompt: EncodedPrompt, said: Said) -> None:
        """Once: raises `VideoOPDError` where the weights in the teacher's folder say otherwise."""
        said = {key: (ids, logprobs) for key, (ids, logprobs) in said.items() if ids}
        if self._compared or not said:
            return
        self._compared = True
        from opd_core.engines.vllm_server.comparing import compare

        compare(
            self._config, self._folder, self._dtype, self._encoder, prompt,
            {key: ids for key, (ids, _) in said.items()},
            {key: logprobs for key, (_, logprobs) in said.items()}, self._connection.address,
        )  # fmt: skip


def served(connection: Connection, settings: VLLMServerSection) -> tuple[str, int]:
    """The name of the model that is asked, and the tokens it has room for. Raises `VideoOPDError`
    where the server has no such model."""
    models = connection.models()
    names = ", ".join(models)
    if settings.model is None and len(models) != 1:
        raise VideoOPDError(
            f"the vLLM server at {connection.address} serves {len(models)} models ({names}); name "
            "the teacher's in vllm_server.model"
        )
    name = settings.model or next(iter(models))
    if name not in models:
        raise VideoOPDError(
            f"the vLLM server at {connection.address} serves no {name!r} but {names}; correct "
            "vllm_server.model"
        )
    return name, models[name]


def has_weights(folder: Path) -> bool:
    """Whether the weights of a model are in its folder, or only what its prompts are made with."""
    return any(folder.glob("*.safetensors"))
