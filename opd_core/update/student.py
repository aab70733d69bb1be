"""Update: a short run of optimiser steps on one round's selected rollouts (arXiv 2602.02994).

One forward and one backward pass a prefix tree; no second student pass for old log-probabilities,
because the sampler's were kept. Only where those are of another arithmetic and the loss needs the
trainer's own (`old_logprobs.py`), what later steps train on is run once before the first. On the
first step, before any weight has moved, the student's log-probs are those of the policy that
sampled: how far the two are apart is measured and bounded.

Weights that are trained, and the optimiser's state, are float32; a lower precision in the config
is the precision of the forward pass (autocast). The optimiser's state goes into the checkpoint.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from opd_core.adapter_folder import is_adapter
from opd_core.config.load import Config
from opd_core.model.agreement import bound_for, served_dtype
from opd_core.model.architectures import Architecture, architecture_of
from opd_core.model.checkpoint import save_checkpoint
from opd_core.model.file_modes import give_umask_modes
from opd_core.model.prefix_tree import Pack, PrefixTree, fill, pack
from opd_core.model.tree_model import TreeModel, choose_device, load_model
from opd_core.prompts.batches import EncodedBatch, ExampleEncoder, cut_at_videos
from opd_core.scoring.trees import rollout_tree
from opd_core.types import (
    GroundingExample,
    Policy,
    Rollout,
    TeacherScore,
    TrainedRollout,
    UpdateStep,
    VideoOPDError,
    make_seed,
)
from opd_core.update.chunk import Chunk, Fact
from opd_core.update.continuation import OPTIMIZER_FILE
from opd_core.update.importance import Importance, Weights
from opd_core.update.old_logprobs import OldLogprobs, completion_logprobs
from opd_core.update.step_record import FirstStep, StepRecord
from opd_core.update.training_loss import TrainingLoss, facts_of


@dataclass(frozen=True, slots=True)
class Trained:
    """An example of the update: its selected rollouts and their scores, side by side.

    A score is None where no objective needs the teacher.
    """

    example: GroundingExample
    rollouts: tuple[Rollout, ...]
    scores: tuple[TeacherScore | None, ...]


@dataclass(frozen=True, slots=True)
class UpdateResult:
    steps: tuple[UpdateStep, ...]
    trained: tuple[TrainedRollout, ...]
    tokens: int
    """Completion tokens of `trained`."""
    first_step: FirstStep | None
    """None on answers that the policy has not sampled."""
    stopped_early: str | None


def update_student(
    config: Config,
    parent: Policy,
    work: Sequence[Trained],
    staging: Path,
    on_step: Callable[[UpdateStep], None] = lambda _: None,
    base: Path | None = None,
    restart_optimizer: bool = False,
) -> UpdateResult:
    """Train `parent` on its own rollouts and write the new checkpoint into `staging`.

    `work` has the sentences of one video next to each other; `base` is the folder of policy 0,
    which only `update.grpo.reference_kl` needs. The optimiser begins with policy 0, whatever lies
    in its folder, and where `restart_optimizer` (`continuation.py`) says so. Raises `VideoOPDError`
    on rows of another policy, on log-probs that the sampler and the trainer do not agree on, and on
    a loss that is no number; the run is then as it was before.
    """
    _check_on_policy(config, parent, work)
    settings = config.update
    encoder = ExampleEncoder(config, parent.path)
    tokenizer = encoder.prompts.tokenizer
    begins = parent.version == 0 or restart_optimizer
    student = _Student(config, parent, tokenizer, base, begins)
    plan = plan_steps([w.example for w in work], config, parent.version)
    facts = {
        fact.rollout.rollout_id: fact
        for w in work
        for fact in facts_of(config, w.rollouts, w.scores)
    }
    rollouts = {w.example.example_id: list(w.rollouts) for w in work}
    steps: list[UpdateStep] = []
    bound = bound_for(
        settings.max_logprob_mismatch,
        [served_dtype(config, r.engine, config.student.dtype) for w in work for r in w.rollouts]
        + [config.student.dtype],
        choose_device(config.machine.device).type,
    )
    first_step: FirstStep | None = None
    stopped: str | None = None
    trained: dict[str, TrainedRollout] = {}
    if later := student.old.wanted(plan, rollouts):
        parts = list(cut_at_videos(later, settings.examples_per_step))
        for batch in encoder.encode_batches(parts, "update", parent.version):
            student.old.remember(_trees(batch, rollouts))
    for number, batch in enumerate(encoder.encode_batches(plan, "update", parent.version)):
        began = time.perf_counter()
        trees = _trees(batch, rollouts)
        tokens = sum(len(s.token_ids) for t in trees for s in t.segments if s.key is not None)
        measured = student.accumulate(trees, facts)
        if number == 0:
            first_step = measured.check_first_step(bound)
        policy_kl = measured.policy_kl()
        if policy_kl is not None and policy_kl > settings.max_policy_kl:
            stopped = (
                f"before step {number} the KL to the sampling policy was {policy_kl:.3f} nats a "
                f"token, above update.max_policy_kl = {settings.max_policy_kl}"
            )
            break
        rate, grad_norm = student.step(1 - number / len(plan))
        ratio_min, ratio_max = measured.ratio_range()
        for rollout_id, logprobs in measured.by_rollout():
            seen = TrainedRollout(rollout_id, parent.version, number, logprobs)
            trained.setdefault(rollout_id, seen)
        steps.append(
            UpdateStep(
                step=number,
                loss=measured.loss,
                learning_rate=rate,
                grad_norm=grad_norm,
                tokens=tokens,
                rollouts=len(measured.keys),
                reverse_kl=measured.student_k1(),
                policy_kl=policy_kl,
                ratio_min=ratio_min,
                ratio_max=ratio_max,
                effective_sample_size=measured.effective_sample_size(),
                tis_weight_mean=measured.tis_weight_mean(),
                tis_truncated=measured.tis_truncated(),
                seconds=time.perf_counter() - began,
            )
        )
        on_step(steps[-1])
    student.save(staging, parent.path)
    tokens = sum(len(rollout.student_logprobs) for rollout in trained.values())
    return UpdateResult(tuple(steps), tuple(trained.values()), tokens, first_step, stopped)


def plan_steps(
    examples: Sequence[GroundingExample], config: Config, version: int
) -> list[list[GroundingExample]]:
    """The examples of each optimiser step: `examples_per_step` or a little more, because a video
    is never parted; the videos shuffled anew each epoch, by seed."""
    settings = config.update
    videos = [list(group) for _, group in groupby(examples, key=lambda e: e.video_path)]
    steps: list[list[GroundingExample]] = []
    for epoch in range(settings.epochs):
        order = sorted(videos, key=lambda v: v[0].example_id)
        random.Random(make_seed(config.run.seed, "steps", version, "", epoch)).shuffle(order)
        batch: list[GroundingExample] = []
        for video in order:
            batch.extend(video)
            if len(batch) >= settings.examples_per_step:
                steps.append(batch)
                batch = []
        if batch:
            steps.append(batch)
    return steps[: settings.max_steps]


def _trees(batch: EncodedBatch, rollouts: dict[str, list[Rollout]]) -> list[PrefixTree]:
    for item in batch.quarantined:
        raise VideoOPDError(
            f"{item.video_path}, on which selected rollouts stand, can no longer be used "
            f"({item.reason}); restore it and give the command again, or take its annotations "
            "out of data.train"
        )
    return [rollout_tree(video, rollouts) for video in batch.videos]


class _Student:
    """The trained model, its optimiser, and its schedule."""

    def __init__(
        self,
        config: Config,
        parent: Policy,
        tokenizer: Any,
        base: Path | None,
        begins: bool,
    ) -> None:
        self._settings = settings = config.update
        self._device = choose_device(config.machine.device)
        model = load_model(parent.path, "float32", self._device)
        torch.manual_seed(make_seed(config.run.seed, "update", parent.version, "", 0))
        self.trainable = _choose_trainable(model, config, parent.path)
        if settings.gradient_checkpointing:
            model.gradient_checkpointing_enable(  # type: ignore[operator]
                gradient_checkpointing_kwargs={"use_reentrant": False}
            )
        model.train()
        self.model = TreeModel(model, tokenizer, settings.completion_rows_per_chunk)
        self._autocast = getattr(torch, config.student.dtype)
        self._loss = TrainingLoss(config, tokenizer, self.model.excluded_ids, self._device)
        self._importance = Importance(config)
        self.old = OldLogprobs(
            self.model, self._importance, self._precision, settings.max_tokens_per_pack
        )
        self._reference: TreeModel | None = None
        if self._loss.needs_reference:
            if base is None:
                raise ValueError("update.grpo.reference_kl needs the folder of the base student")
            frozen = load_model(base, config.student.dtype, self._device)
            self._reference = TreeModel(frozen, tokenizer, settings.completion_rows_per_chunk)
        self._optimizer = torch.optim.AdamW(
            self.trainable,
            lr=settings.learning_rate,
            betas=settings.adam_betas,
            weight_decay=settings.weight_decay,
        )
        self._steps_done = 0
        if not begins:
            self._go_on(parent.path / OPTIMIZER_FILE)

    def _go_on(self, path: Path) -> None:
        """Takes over the optimiser's state; what the config says of it holds from now on."""
        try:
            saved = torch.load(path, map_location=self._device, weights_only=True)
            state, steps_done = saved["optimizer"], int(saved["steps_done"])
        except (OSError, EOFError, RuntimeError, KeyError, TypeError, UnpicklingError) as error:
            raise VideoOPDError(
                f"{path} is no readable state of an optimiser ({type(error).__name__}); restore "
                "it, or remove it and the optimiser begins anew"
            ) from None
        count = sum(len(group["params"]) for group in state["param_groups"])
        if count != len(self.trainable) or any(
            moments["exp_avg"].shape != self.trainable[at].shape
            for at, moments in state["state"].items()
        ):
            raise VideoOPDError(
                f"{path} is the state of an optimiser of other weights than the config trains; put "
                "back the settings that it was saved with, or remove it and the optimiser begins "
                "anew"
            )
        self._optimizer.load_state_dict(state)
        self._steps_done = steps_done
        for group in self._optimizer.param_groups:
            group["weight_decay"] = self._settings.weight_decay

    def accumulate(self, trees: Sequence[PrefixTree], facts: dict[str, Fact]) -> StepRecord:
        """Gradients of the step's loss: summed over packs, divided by the step's token count."""
        self._optimizer.zero_grad(set_to_none=True)
        completions = (s.token_ids for tree in trees for s in tree.segments if s.key is not None)
        tokens = max(sum(self._loss.tokens_in_loss(ids) for ids in completions), 1)
        measured = StepRecord()
        for group in fill(trees, self._settings.max_tokens_per_pack):
            packed = pack(group)
            reference = self._reference_logprobs(packed)
            loss = torch.zeros((), device=self._device)
            with self._precision():
                for keys, token_ids_C, hidden_CD in self.model.completion_hidden(packed):
                    known = [facts[str(key)] for key in keys]
                    reference_C = (
                        None if reference is None else torch.cat([reference[k] for k in keys])
                    )
                    # Of a chunk only its hidden states are kept for the backward pass, which makes
                    # its distributions again: those of all chunks together are no memory's size.
                    chunk_loss, chunk, weights = checkpoint(
                        self._chunk_loss, hidden_CD, token_ids_C, known, reference_C,
                        use_reentrant=False, preserve_rng_state=False,
                    )  # fmt: skip
                    loss = loss + chunk_loss / tokens
                    measured.add(chunk, weights, self._loss.in_loss(chunk))
                    del chunk
            if not torch.isfinite(loss):
                raise VideoOPDError(
                    f"the loss of the update is {float(loss)} on rollouts such as "
                    f"{measured.keys[-1]}; lower update.learning_rate and rerun the stage"
                )
            loss.backward()
            measured.loss += float(loss.detach())
        return measured

    def _chunk_loss(
        self,
        hidden_CD: Tensor,
        token_ids_C: Tensor,
        facts: Sequence[Fact],
        reference_C: Tensor | None,
    ) -> tuple[Tensor, Chunk, Weights]:
        """The sum of the losses of some whole completions, and what it was computed from."""
        logprobs_CV = self.model.log_softmax(hidden_CD)
        chosen_C = logprobs_CV.gather(1, token_ids_C[:, None])[:, 0]
        old_C = self.old.of([fact.rollout for fact in facts], chosen_C.detach())
        chunk = Chunk(facts, token_ids_C, chosen_C, old_C, logprobs_CV, reference_C)
        weights = self._importance.weights(chunk)
        return self._loss(chunk, weights).sum(), chunk, weights

    def _reference_logprobs(self, packed: Pack) -> dict[Hashable, Tensor] | None:
        """The base student's log-probs of each completion of a pack, where the loss needs them."""
        return None if self._reference is None else completion_logprobs(self._reference, packed)

    def step(self, to_come: float) -> tuple[float, float]:
        """One optimiser step; (learning rate, gradient norm before clipping).

        `to_come`: share of the round's steps that are still to come, this one among them.
        """
        warm = max(self._settings.warmup_steps, 1)
        rate = self._settings.learning_rate * min(1.0, (self._steps_done + 1) / warm)
        if to_come < self._settings.cooldown:
            rate *= to_come / self._settings.cooldown
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        norm = nn.utils.clip_grad_norm_(self.trainable, self._settings.max_grad_norm)
        if not torch.isfinite(norm):
            raise VideoOPDError(
                f"the gradient norm of the update is {float(norm)}; lower update.learning_rate "
                "and rerun the stage"
            )
        self._optimizer.step()
        self.old.moved = True
        self._steps_done += 1
        return rate, float(norm)

    def _precision(self) -> contextlib.AbstractContextManager[object]:
        if self._autocast == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self._device.type, dtype=self._autocast)

    def save(self, staging: Path, parent: Path) -> None:
        """A Hugging Face folder (or PEFT adapter folder) with processor and optimiser state."""
        staging.mkdir(parents=True, exist_ok=True)
        save_checkpoint(self.model.model, staging)
        for file in sorted(parent.iterdir()):
            if file.is_file() and _belongs_to_processor(file.name):
                shutil.copyfile(file, staging / file.name)
        torch.save(
            {"optimizer": self._optimizer.state_dict(), "steps_done": self._steps_done},
            staging / OPTIMIZER_FILE,
        )
        give_umask_modes(staging)


def _choose_trainable(model: Any, config: Config, folder: Path) -> list[nn.Parameter]:
    """Freeze what the config freezes; add or continue the LoRA adapter."""
    settings = config.update
    family = architecture_of(model.config)
    adapted = is_adapter(folder)
    if settings.lora is not None:
        if adapted:
            _set_dropout(model, settings.lora.dropout)
        else:
            from peft import LoraConfig

            model.add_adapter(
                LoraConfig(
                    r=settings.lora.rank,
                    lora_alpha=settings.lora.alpha,
                    lora_dropout=settings.lora.dropout,
                    target_modules=_language_modules(
                        model, family, settings.lora.target_modules or family.lora_modules
                    ),
                    base_model_name_or_path=str(folder),
                )
            )
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora_" in name)
    elif settings.freeze_vision:
        family.freeze_vision(model)
    return [p for p in model.parameters() if p.requires_grad]


def _set_dropout(model: Any, share: float) -> None:
    """The adapter was loaded with the dropout that it was saved with."""
    from peft.tuners.lora import LoraLayer

    for described in model.peft_config.values():
        described.lora_dropout = share
    for module in model.modules():
        if isinstance(module, LoraLayer):
            for name in module.lora_dropout:
                module.lora_dropout[name] = nn.Dropout(share) if share else nn.Identity()


def _language_modules(model: Any, family: Architecture, names: Sequence[str]) -> list[str]:
    """The full names of the language model's layers: the vision tower stays as it is."""
    linear = {
        n: n.rsplit(".", 1)[-1]
        for n, module in model.named_modules()
        if family.is_text(n) and isinstance(module, nn.Linear)
    }
    family.refuse_lora_of(set(names) - set(linear.values()), set(linear.values()))
    return [n for n, last in linear.items() if last in names]


def _belongs_to_processor(name: str) -> bool:
    starts = ("tokenizer", "special_tokens", "added_tokens", "vocab", "merges", "chat_template")
    return name.startswith(starts) or "processor" in name


def _check_on_policy(config: Config, parent: Policy, work: Sequence[Trained]) -> None:
    """Every rollout is of the source that the config names; the student's own are of `parent`."""
    for item in work:
        for rollout, score in zip(item.rollouts, item.scores, strict=True):
            if rollout.answered_by != config.rollout.source:
                raise VideoOPDError(
                    f"rollout {rollout.rollout_id} is an answer of the {rollout.answered_by} and "
                    f"rollout.source is {config.rollout.source!r}; put back the config that the "
                    "round began with, or start a new run"
                )
            if rollout.answered_by == "student" and rollout.policy_hash != parent.weights_hash:
                raise VideoOPDError(
                    f"rollout {rollout.rollout_id} was sampled by policy {rollout.policy_version} "
                    f"(weights {rollout.policy_hash}) but the update trains policy "
                    f"{parent.version} (weights {parent.weights_hash}); a round trains on its own "
                    "rollouts only: rerun the rollout stage of this round"
                )
            if score is not None and score.rollout_id != rollout.rollout_id:
                raise ValueError(f"score of {score.rollout_id} beside {rollout.rollout_id}")
