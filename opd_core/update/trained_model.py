"""The student while it is trained: gradients of a step's loss, the step, and what is saved.

A lower precision in the config is that of the forward pass; `in_memory.py` has what the weights lie
in. The policy's folder is what the sampler loads: trained and frozen weights in student.dtype.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from opd_core.config.load import Config
from opd_core.model.checkpoint import save_checkpoint
from opd_core.model.file_modes import give_umask_modes
from opd_core.model.prefix_tree import Pack, PrefixTree, fill, pack
from opd_core.model.tree_model import TreeModel, choose_device, load_model
from opd_core.types import Policy, VideoOPDError, make_seed
from opd_core.update.checkpointing import checkpoint_layers
from opd_core.update.chunk import Chunk, Fact
from opd_core.update.importance import Importance, Weights
from opd_core.update.in_memory import InMemory
from opd_core.update.old_logprobs import OldLogprobs, completion_logprobs
from opd_core.update.step_record import StepRecord
from opd_core.update.stepping import stepping
from opd_core.update.trainable import choose_trainable
from opd_core.update.trainer_state import (
    read_optimizer,
    read_random,
    read_weights,
    write_random,
    write_state,
)
from opd_core.update.training_loss import TrainingLoss


class TrainedModel:
    """The trained model, its optimiser, and its schedule.

    `trainer` is the folder of what the training of `parent` left (`trainer_state.py`), None where
    there is none; the optimiser begins anew where there is none, and with `restart_optimizer`.
    """

    def __init__(
        self,
        config: Config,
        parent: Policy,
        tokenizer: Any,
        base: Path | None,
        trainer: Path | None,
        restart_optimizer: bool,
    ) -> None:
        self._config, self._version = config, parent.version
        self._settings = settings = config.update
        self._memory = memory = InMemory.of(config)
        self._device = choose_device(config.machine.device)
        model = load_model(parent.path, memory.opened_as(parent.path, settings.lora is not None))
        torch.manual_seed(make_seed(config.run.seed, "update", parent.version, "", 0))
        self._trained = choose_trainable(model, config, parent.path)
        kept = memory.lay_out(model, self._trained, self._device)
        weights = None if trainer is None else read_weights(trainer, memory.served)
        self._stepping = stepping(settings, memory, self._trained, kept)
        if weights is not None:
            self._stepping.take_over(weights)
        self._before = {name: self._as_served(w) for name, w in self._trained.items()}
        checkpoint_layers(model, settings.gradient_checkpointing)
        model.train()
        self.model = TreeModel(model, tokenizer, settings.completion_rows_per_chunk)
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
        self._steps_done = 0
        if trainer is not None and not restart_optimizer:
            self._steps_done = read_optimizer(
                trainer, self._stepping.optimizer, self._stepping.shapes, memory.place(self._device)
            )
            for group in self._stepping.optimizer.param_groups:
                group["weight_decay"] = settings.weight_decay

    def accumulate(self, trees: Sequence[PrefixTree], facts: dict[str, Fact]) -> StepRecord:
        """Gradients of the step's loss: summed over packs, divided by the step's token count."""
        for weight in self._trained.values():
            weight.grad = None
        completions = (s.token_ids for tree in trees for s in tree.segments if s.key is not None)
        tokens = max(sum(self._loss.tokens_in_loss(ids) for ids in completions), 1)
        measured = StepRecord()
        packs = map(pack, fill(trees, self._settings.max_tokens_per_pack))
        for inputs in self.model.ahead(packs):
            reference = self._reference_logprobs(inputs.pack)
            loss = torch.zeros((), device=self._device)
            with self._precision():
                for keys, token_ids_C, hidden_CD in self.model.completion_hidden(inputs):
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
        norm = self._stepping.clip(self._settings.max_grad_norm)
        if not torch.isfinite(norm):
            raise VideoOPDError(
                f"the gradient norm of the update is {float(norm)}; lower update.learning_rate "
                "and rerun the stage"
            )
        seed = make_seed(self._config.run.seed, "rounding", self._version, "", self._steps_done)
        self._stepping.step(rate, seed)
        self.old.moved = True
        self._steps_done += 1
        return rate, float(norm)

    def _precision(self) -> contextlib.AbstractContextManager[object]:
        if self._memory.autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(self._device.type, dtype=self._memory.autocast)

    def moved_share(self) -> float:
        """Share of the trained weights that are others than the parent's, as the sampler sees both:
        in student.dtype."""
        moved = sum(
            int((self._as_served(weight) != self._before[name]).sum())
            for name, weight in self._trained.items()
        )
        return moved / sum(weight.numel() for weight in self._trained.values())

    def write_step(self, folder: Path) -> None:
        """All that the next step depends on, in the middle of an update."""
        weights = self._stepping.float32_weights() or {
            name: weight.detach() for name, weight in self._trained.items()
        }
        write_state(
            folder, self._stepping.optimizer, self._steps_done, weights, self._memory.served
        )
        write_random(folder, self._device, self.old.known())

    def read_step(self, folder: Path) -> None:
        """Go on after the step that `write_step` wrote into `folder`."""
        weights = read_weights(folder, self._memory.served)
        assert weights is not None, "write_step writes them in any case"
        self._stepping.take_over(weights)
        self._steps_done = read_optimizer(
            folder,
            self._stepping.optimizer,
            self._stepping.shapes,
            self._memory.place(self._device),
        )
        self.old.take_over(read_random(folder, self._device))

    def _as_served(self, weight: Tensor) -> Tensor:
        return weight.detach().to("cpu", self._memory.served, copy=True)

    def save(self, staging: Path, parent: Path, trainer: Path | None) -> None:
        """The policy as a Hugging Face folder (or PEFT adapter folder) with its processor, in
        student.dtype; into `trainer` what training goes on from. No step can be made after it."""
        if trainer is not None:
            weights = self._stepping.float32_weights() if self._memory.rounded else None
            write_state(
                trainer, self._stepping.optimizer, self._steps_done, weights, self._memory.served
            )
            give_umask_modes(trainer)
        staging.mkdir(parents=True, exist_ok=True)
        save_checkpoint(self.model.model.to(self._memory.served), staging)
        for file in sorted(parent.iterdir()):
            if file.is_file() and belongs_to_processor(file.name):
                shutil.copyfile(file, staging / file.name)
        give_umask_modes(staging)


def belongs_to_processor(name: str) -> bool:
    starts = ("tokenizer", "special_tokens", "added_tokens", "vocab", "merges", "chat_template")
    return name.startswith(starts) or "processor" in name
