"""vLLM behind our engine protocol, and the only file that imports it.

It runs in a child process (`child.py`) that lives as long as a stage, with the engine core in that
same process. What differs from vLLM's own habits, and why:

1. Excluded tokens get -inf in the model's logits, not in each request. So sampling, greedy answers
   and prompt_logprobs share one distribution, that of `TreeModel.log_softmax`, and nothing that
   could not be excluded remains to be reported. (`allowed_token_ids` takes 1,024 ids at most in
   vLLM's second model runner and does not reach prompt_logprobs.)
2. G rollouts are G requests, each with the seed of its row. `n = G` would give them the seeds
   s, s + 1, ...; it forks into G requests inside vLLM anyway, and the prefix cache serves both.
3. Pixels are normalised by the checkpoint's video processor. By default vLLM ships uint8 and
   normalises them on the device, with the *image* processor's mean and std.
4. generation_config.json is ignored: it truncates the distribution.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from opd_core import torchvision_guard
from opd_core.adapter_folder import ADAPTER_CONFIG, base_folder, is_adapter
from opd_core.config.sections import VLLMSection
from opd_core.engines.base import (
    Refused,
    Sample,
    SamplingParams,
    Scored,
    SeenPrompt,
    pixel_sample,
    sample_rows,
)
from opd_core.engines.idle_time import EngineTime
from opd_core.engines.tail import tail_logprob
from opd_core.engines.vllm import loaded_weights
from opd_core.model.architectures import ARCHITECTURES, Architecture, architecture_in
from opd_core.model.published import generation_config, merge_adapter, published_form
from opd_core.model.vocabulary import end_token_ids, excluded_token_ids
from opd_core.types import VideoOPDError
from opd_core.video.clip import VideoClip, hash_pixels

Rendered: TypeAlias = dict[str, Any]
"""What vLLM's processor makes of a prompt."""
PREFIX_BLOCK_ON_CPU = 32
"""Tokens of a block of the prefix cache; vLLM takes 128 there, longer than a tiny prompt."""


@dataclass(frozen=True, slots=True)
class VLLMSettings:
    folder: Path
    dtype: str
    device: str
    """`cpu` or `cuda`."""
    max_model_len: int
    section: VLLMSection
    scratch: Path
    """An empty folder, removed after the stage: for merged weights."""
    max_logprobs: int = 20


@dataclass(frozen=True, slots=True)
class VLLMPrompt:
    """The prompt of one example, with what shall be done with it."""

    key: Hashable
    text: str
    clip: VideoClip
    seeds: tuple[int, ...] = ()
    """To sample: one answer each."""
    completions: tuple[tuple[Hashable, tuple[int, ...]], ...] = ()
    """To score: key and token ids of answers."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A prompt as vLLM's own processor makes it, or what that raised."""

    prompt: VLLMPrompt
    pixel_hash: str = ""
    rendered: Rendered | None = None
    error: Exception | None = None


class _Asked(NamedTuple):
    """A request that vLLM has taken."""

    name: str
    key: Hashable
    seen: SeenPrompt
    length: int = 0
    """Tokens of the completion, where one is scored; `key` is then its own."""


class VLLMEngine:
    """One checkpoint, loaded. Raises `VideoOPDError` when vLLM cannot open it, or when its weights
    are not those of the folder."""

    name = "vllm"

    def __init__(self, settings: VLLMSettings) -> None:
        torchvision_guard.install()
        import vllm
        from vllm.platforms import current_platform

        self.version = f"vllm {vllm.__version__}, torch {torch.__version__}"
        self._on_cpu = current_platform.is_cpu()
        if self._on_cpu != (settings.device == "cpu"):
            raise VideoOPDError(
                f"the installed vLLM {vllm.__version__} is built for "
                f"{current_platform.device_type}, but machine.device is {settings.device}; "
                "install the other build, or set the engine to 'hf'"
            )
        self._settings = settings
        self._next_id = 0
        self._asked: list[str] = []
        self.time = EngineTime()
        """Of the last batch: since the one before was answered, or since it is open."""
        self._lora: Any = None
        served = settings.folder
        if is_adapter(settings.folder):
            if settings.section.lora == "merged":
                served = merge_adapter(settings.folder, settings.scratch, settings.dtype)
            else:
                from vllm.lora.request import LoRARequest

                served = base_folder(settings.folder)
                if self._on_cpu and architecture_in(served).experts is not None:
                    raise VideoOPDError(
                        f"on a CPU vLLM {vllm.__version__} runs no experts beside an adapter (its "
                        "kernel for the two is Triton's); set vllm.lora = 'merged'"
                    )
                self._lora = LoRARequest("policy", 1, str(settings.folder))
        served = published_form(served, settings.scratch / "published")
        self._llm = self._load(vllm, served, self._lora is not None)
        family = architecture_in(served)
        tokenizer = self._llm.get_tokenizer()
        vocab_size = self._llm.model_config.get_vocab_size()
        excluded = excluded_token_ids(tokenizer, vocab_size, family.placeholders)
        self._family = family
        self._llm.collective_rpc("use_family", args=(family.model_type,))
        self._possible = vocab_size - len(excluded)
        self._llm.collective_rpc("exclude_tokens", args=(list(excluded),))
        self._end_ids = end_token_ids(generation_config(served), tokenizer)
        self.weights_compared = self._check_weights(served)
        self._idle_since = time.perf_counter()

    def _load(self, vllm: Any, served: Path, with_adapter: bool) -> Any:
        section = self._settings.section
        options: dict[str, Any] = {}
        kv_cache_gib = section.kv_cache_gib
        if self._on_cpu:
            options["block_size"] = PREFIX_BLOCK_ON_CPU
            # A prompt that is prefilled in parts turns back the generator of its seed, which
            # torch's CPU generators cannot do: a batch with much to prefill would crash.
            options["enable_chunked_prefill"] = False
            options["max_num_batched_tokens"] = max(self._settings.max_model_len, 8192)
            kv_cache_gib = kv_cache_gib or 1.0
        if kv_cache_gib is not None:
            options["kv_cache_memory_bytes"] = int(kv_cache_gib * 2**30)
        if with_adapter:
            described = json.loads((self._settings.folder / ADAPTER_CONFIG).read_text())
            options |= {"enable_lora": True, "max_lora_rank": _lora_rank(described["r"])}
        try:
            family = architecture_in(served)
            architecture = family.model_class
            # Not the registry's subprocess: it would miss the torchvision guard, and takes seconds.
            registry = vllm.ModelRegistry
            registry.register_model(architecture, registry.models[architecture].load_model_cls())
            return vllm.LLM(
                model=str(served),
                dtype=section.dtype or self._settings.dtype,
                seed=0,
                tensor_parallel_size=section.tensor_parallel_size,
                gpu_memory_utilization=section.gpu_memory_utilization,
                max_model_len=self._settings.max_model_len,
                enforce_eager=section.enforce_eager or self._on_cpu,
                enable_prefix_caching=True,
                generation_config="vllm",
                hf_overrides=family.vllm_overrides(),
                logprobs_mode="raw_logprobs",
                max_logprobs=max(self._settings.max_logprobs, 1),
                limit_mm_per_prompt={"video": 1, "image": 0},
                mm_processor_kwargs={"do_resize": False},
                mm_device_do_normalize=section.normalize_on_device,
                # A video's pixels are handed over with each request; vLLM's own cache would want
                # to be asked in the very order in which it was filled.
                mm_processor_cache_gb=0,
                worker_extension_cls=f"{WorkerTools.__module__}.{WorkerTools.__name__}",
                disable_log_stats=True,
                **options,
            )
        except Exception as error:  # vLLM raises all kinds, most of them ValueError
            raise VideoOPDError(
                f"vLLM cannot open {served} ({_first_line(error)}); correct the [vllm] section, or "
                "set the engine to 'hf'"
            ) from error

    def prepare(self, prompt: VLLMPrompt) -> Prepared:
        """What takes long before a request can be added. May be called in another thread while the
        engine answers: it asks vLLM's processor alone, never the engine or its workers."""
        clip = prompt.clip
        pixel_hash = hash_pixels(clip.frames)
        try:
            (rendered,) = self._llm._preprocess_cmpl(
                [
                    {
                        "prompt": prompt.text,
                        "multi_modal_data": {"video": (clip.frames, clip.metadata)},
                        # Who is who for the prefix cache: pixels, and all that is said of their
                        # times.
                        "multi_modal_uuids": {"video": [f"{pixel_hash} {clip.metadata}"]},
                    }
                ]
            )
        except Exception as error:  # vLLM raises all kinds; told where it is asked for
            return Prepared(prompt, error=error)
        return Prepared(prompt, pixel_hash, rendered)

    def sample(
        self, prompts: Iterable[Prepared], params: SamplingParams
    ) -> dict[Hashable, list[Sample] | Refused]:
        """Answers by key.

        `Refused` with the reason for a prompt on which vLLM raises: it costs that prompt alone.
        """
        import vllm

        def ask(one: Prepared) -> list[_Asked]:
            rendered, seen = self._rendered(one, params.max_new_tokens)
            prompt = one.prompt
            each = (
                vllm.SamplingParams(
                    seed=seed,
                    temperature=0.0 if params.greedy else params.temperature,
                    top_p=1.0 if params.greedy else params.top_p,
                    top_k=0 if params.greedy else params.top_k,
                    max_tokens=params.max_new_tokens,
                    stop_token_ids=sorted(self._end_ids),
                    logprobs=0,
                    detokenize=False,
                )
                for seed in prompt.seeds
            )
            return [_Asked(self._add(rendered, wanted), prompt.key, seen) for wanted in each]

        asked, refused = self._ask_each(prompts, ask)
        outputs = self._run()
        answers: dict[Hashable, list[Sample]] = {}
        for one in asked:
            sample = self._sample(outputs[one.name], one.seen)
            answers.setdefault(one.key, []).append(sample)
        return {**answers, **refused}

    def _ask_each(
        self, prompts: Iterable[Prepared], ask: Callable[[Prepared], list[_Asked]]
    ) -> tuple[list[_Asked], dict[Hashable, Refused]]:
        """What was handed over to vLLM, and the prompts that it would not take."""
        asked: list[_Asked] = []
        refused: dict[Hashable, Refused] = {}
        for prepared in prompts:
            before = len(self._asked)
            try:
                asked += ask(prepared)
            except MemoryError:
                raise
            except Exception as error:  # of its processor, or of ours; vLLM raises all kinds
                self._llm.llm_engine.abort_request(self._asked[before:])
                del self._asked[before:]
                told = isinstance(error, VideoOPDError)
                refused[prepared.prompt.key] = Refused(str(error) if told else _first_line(error))
        return asked, refused

    def _sample(self, output: Any, seen: SeenPrompt) -> Sample:
        (answer,) = output.outputs
        token_ids = tuple(int(t) for t in answer.token_ids)
        logprobs = tuple(
            at[token].logprob for token, at in zip(token_ids, answer.logprobs or (), strict=False)
        )
        # vLLM says `length` where an end token is also the last one there is room for.
        ended = bool(token_ids) and token_ids[-1] in self._end_ids
        used = replace(seen, token_ids=tuple(output.prompt_token_ids))
        return Sample(token_ids, logprobs, "stop" if ended else str(answer.finish_reason), used)

    def score(self, prompts: Iterable[Prepared], topk: int) -> dict[Hashable, Scored | Refused]:
        """Log-probs of each completion by its key: a prefill of prompt and completion, of which
        vLLM projects every row onto the vocabulary. `Refused` as in `sample`."""
        import vllm

        began = time.perf_counter()
        topk = min(topk, self._possible)

        def ask(one: Prepared) -> list[_Asked]:
            prompt = one.prompt
            longest = max(len(ids) for _, ids in prompt.completions)
            rendered, seen = self._rendered(one, longest + 1)
            wanted = vllm.SamplingParams(
                temperature=0.0, max_tokens=1, prompt_logprobs=topk, detokenize=False
            )
            return [
                _Asked(
                    self._add(
                        {
                            **rendered,
                            "prompt_token_ids": [*rendered["prompt_token_ids"], *completion],
                        },
                        wanted,
                    ),
                    key,
                    seen,
                    len(completion),
                )
                for key, completion in prompt.completions
            ]

        asked, refused = self._ask_each(prompts, ask)
        outputs = self._run()
        seconds = (time.perf_counter() - began) / max(len(asked), 1)
        scores: dict[Hashable, Scored] = {}
        for name, key, seen, length in asked:
            output = outputs[name]
            tokens = list(output.prompt_token_ids)
            used = replace(seen, token_ids=tuple(tokens[:-length]))
            rows = output.prompt_logprobs[-length:]
            own = tuple(at[token].logprob for token, at in zip(tokens[-length:], rows, strict=True))
            top = [sorted(at.items(), key=lambda entry: -entry[1].logprob)[:topk] for at in rows]
            logprobs = [tuple(entry.logprob for _, entry in row) for row in top]
            scores[key] = Scored(
                logprobs=own,
                topk_token_ids=[tuple(i for i, _ in row) for row in top] if topk else None,
                topk_logprobs=logprobs if topk else None,
                tail_logprobs=[tail_logprob(row) for row in logprobs] if topk else None,
                prompt=used,
                seconds=seconds,
            )
        return {**scores, **refused}

    def _rendered(self, one: Prepared, new_tokens: int) -> tuple[Rendered, SeenPrompt]:
        """The prompt as vLLM's own processor made it, and the evidence of what that is."""
        if one.error is not None:
            raise one.error
        prompt, rendered = one.prompt, one.rendered
        assert rendered is not None
        tokens = tuple(rendered["prompt_token_ids"])
        longest = self._settings.max_model_len
        if len(tokens) + new_tokens > longest:
            raise VideoOPDError(
                f"the prompt of {prompt.key} and its answer are {len(tokens)} + {new_tokens} "
                f"tokens, more than the {longest} that vLLM was opened for; set "
                f"vllm.max_model_len = {len(tokens) + new_tokens}, or lower video.max_video_tokens"
            )
        family = self._family
        (video,) = rendered["mm_kwargs"]["video"]
        t, h, w = (int(n) for n in video[family.grid].data)
        patches = video[family.pixels].data
        rows = patches[sample_rows(len(patches))]
        normalised = self._llm.collective_rpc("normalise", args=(rows,))[0]
        (placed,) = rendered["mm_placeholders"]["video"]
        grid = type(video)({k: v for k, v in video.items() if k != family.pixels})
        position = self._llm.collective_rpc("answer_position", args=(tokens, grid, placed))[0]
        given = video.get(family.second_per_grid)
        seconds = None if given is None else given.data.item()
        return rendered, SeenPrompt(
            tokens, (t, h, w), pixel_sample(normalised), one.pixel_hash, seconds, position
        )

    def _add(self, rendered: Rendered, params: Any) -> str:
        name = str(self._next_id)
        self._next_id += 1
        self._asked.append(name)
        self._llm.llm_engine.add_request(name, rendered, params, lora_request=self._lora)
        return name

    def _run(self) -> dict[str, Any]:
        engine = self._llm.llm_engine
        outputs: dict[str, Any] = {}
        began = time.perf_counter()
        while engine.has_unfinished_requests():
            for output in engine.step():
                if output.finished:
                    outputs[output.request_id] = output
        self._asked.clear()
        ended = time.perf_counter()
        self.time = EngineTime(ended - began, began - self._idle_since)
        self._idle_since = ended
        return outputs

    def _check_weights(self, served: Path) -> dict[str, int]:
        """How many tensors of vision and language were compared with the folder's files."""
        counts, fault = self._llm.collective_rpc("compare_weights", args=(str(served),))[0]
        if fault is not None:
            raise VideoOPDError(
                f"vLLM holds other weights than {served}: {fault}; the checkpoint is damaged, or "
                "this version of vLLM reads it wrongly: set the engine to 'hf'"
            )
        result: dict[str, int] = counts
        return result

    def abort(self) -> None:
        """Forget what was asked: after an exception."""
        self._llm.llm_engine.abort_request(self._asked)

    def close(self) -> None:
        self._llm.llm_engine.engine_core.shutdown()


class WorkerTools:
    """What vLLM's workers can do besides; mixed into their class by `worker_extension_cls`."""

    get_model: Any
    family: Architecture

    def use_family(self, model_type: str) -> None:
        """Whose model this is: asked first."""
        self.family = ARCHITECTURES[model_type]

    def exclude_tokens(self, token_ids: list[int]) -> None:
        """-inf at these ids in all logits from now on."""
        model = self.get_model()
        original = model.compute_logits
        excluded = torch.tensor(token_ids, dtype=torch.long, device=next(model.parameters()).device)

        def compute_logits(*args: Any, **kwargs: Any) -> Tensor | None:
            logits: Tensor | None = original(*args, **kwargs)
            if logits is None:  # another rank has them
                return None
            return logits.index_fill_(-1, excluded, float("-inf"))

        model.compute_logits = compute_logits

    @torch.inference_mode()
    def normalise(self, patches: Tensor) -> Tensor:
        """Patches as the vision tower sees them: vLLM may normalise only there."""
        visual = getattr(self.get_model(), self.family.vision.rsplit(".", 1)[-1])
        norm = getattr(visual, "input_norm", None)
        if norm is None:
            return patches.float().cpu()
        result: Tensor = norm(patches.to(visual.device), torch.float32)
        return result.reshape(patches.shape).float().cpu()

    def answer_position(self, token_ids: tuple[int, ...], grid: Any, placed: Any) -> int:
        """Where vLLM's own rule puts the token after a prompt with one video."""
        from vllm.multimodal.inputs import MultiModalFeatureSpec

        feature = MultiModalFeatureSpec(grid, "video", "", placed)
        _, delta = self.get_model().get_mrope_input_positions(list(token_ids), [feature])
        return len(token_ids) + int(delta)

    @torch.inference_mode()
    def compare_weights(self, folder: str) -> tuple[dict[str, int], str | None]:
        return loaded_weights.compare(self.get_model(), Path(folder))


def _lora_rank(rank: int) -> int:
    """The next rank that vLLM makes room for."""
    return next((r for r in (1, 8, 16, 32, 64, 128, 256, 320, 512) if r >= rank), rank)


def _first_line(error: BaseException) -> str:
    """The cause first: vLLM wraps what went wrong into general messages."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:300]}"


def prepare_environment(device: str, threads: int) -> dict[str, str]:
    """Environment variables of a process that will import vLLM."""
    environment = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }
    if device == "cpu":
        environment["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        # Compiling the sampler costs 16 s, once a process.
        environment["TORCH_COMPILE_DISABLE"] = "1"
        if threads:
            environment["OMP_NUM_THREADS"] = environment["MKL_NUM_THREADS"] = str(threads)
    return environment
