"""The student while it is trained: gradients of a step's loss, the step, and what is saved.

A lower precision in the config is that of the forward pass; `in_memory.py` has what the weights lie
in. The policy's folder is what the sampler loads: trained and frozen weights in student.dtype.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from opd_core.config.load import Config
from opd_core.model.checkpoint import save_checkpoint
from opd_core.model.file_modes import give_umask_modes
from opd_core.model.prefix_tree import Pack, PrefixTree, pack
from opd_core.model.ranks import ALONE, Ranks
from opd_core.model.sharding import gathered, gathered_state, own_part, shard, whole_pass
from opd_core.model.tree_model import PackInputs, TreeModel, choose_device, load_model
from opd_core.types import Policy, VideoOPDError, make_seed
from opd_core.update.checkpointing import checkpoint_layers
from opd_core.update.chunk import Chunk, Fact
from opd_core.update.importance import Importance, Weights
from opd_core.update.in_memory import InMemory
from opd_core.update.old_logprobs import OldLogprobs, completion_logprobs
from opd_core.update.shares import even_packs
from opd_core.update.step_record import StepRecord
from opd_core.update.stepping import stepping
from opd_core.update.trainable import choose_trainable
from opd_core.update.trainer_state import (
    random_states,
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
        ranks: Ranks = ALONE,
    ) -> None:
        self._config, self._parent, self._ranks = config, parent, ranks
        self._settings = settings = config.update
        self._memory = memory = InMemory.of(config)
        self._device = choose_device(config.machine.device)
        model = load_model(parent.path, memory.opened_as(parent.path, settings.lora is not None))
        torch.manual_seed(self._seed("update", 0))
        self._trained = choose_trainable(model, config, parent.path)
        on_device = self._device if ranks.mesh is None else torch.device("cpu")
        kept = memory.lay_out(model, self._trained, on_device)
        shard(model, ranks, memory.autocast)
        self._trained = {n: w for n, w in model.named_parameters() if w.requires_grad}
        weights = None if trainer is None else read_weights(trainer, memory.served)
        self._stepping = stepping(settings, memory, self._trained, kept)
        if weights is not None:
            self._stepping.take_over(weights)
        self._before = {name: self._as_served(w) for name, w in self._trained.items()}
        if ranks.rank:  # what was drawn so far is the adapter, which is one; now comes dropout
            torch.manual_seed(self._seed("update", ranks.rank))
        checkpoint_layers(model, settings.gradient_checkpointing)
        model.train()
        self.model = TreeModel(model, tokenizer, settings.completion_rows_per_chunk)
        self._loss = TrainingLoss(config, tokenizer, self.model.excluded_ids, self._device)
        self._importance = Importance(config)
        self.old = OldLogprobs(
            self.model, self._importance, self._precision, settings.max_tokens_per_pack, ranks
        )
        self._reference: TreeModel | None = None
        if self._loss.needs_reference:
            if base is None:
                raise ValueError("update.grpo.reference_kl needs the folder of the base student")
            frozen = load_model(base, config.student.dtype, on_device).requires_grad_(False)
            shard(frozen, ranks, None)
            self._reference = TreeModel(frozen, tokenizer, settings.completion_rows_per_chunk)
        self._steps_done = 0
        if trainer is not None and not restart_optimizer:
            self._steps_done = read_optimizer(
                trainer, self._stepping.optimizer, self._stepping.shapes, memory.place(self._device)
            )
            for group in self._stepping.optimizer.param_groups:
                group["weight_decay"] = settings.weight_decay

    def accumulate(
        self,
        trees: Sequence[PrefixTree],
        counted: bool,
        facts: Mapping[str, Fact],
    ) -> StepRecord:
        """Gradients of the step's loss: summed over packs, divided by the step's token count.

        `trees` and the `facts` of their rollouts are those of this rank; not `counted`, another's.
        """
        for weight in self._trained.values():
            weight.grad = None
        completions = [f.rollout.completion_token_ids for f in facts.values()] if counted else []
        own = sum(self._loss.tokens_in_loss(ids) for ids in completions)
        tokens = max(sum(self._ranks.gathered(own)), 1)
        measured = StepRecord()
        packs = even_packs(trees, counted, self._settings.max_tokens_per_pack, self._ranks)
        brought = self.model.ahead(pack(group) for group, _ in packs)
        for inputs, (_, of_ours) in zip(brought, packs, strict=True):
            reference = self._reference_logprobs(inputs.pack)
            with self._precision():
                if of_ours:
                    run = partial(self._pack_loss, inputs, facts, reference, tokens, measured)
                else:
                    run = partial(self._no_loss, inputs)
                loss = whole_pass(self.model.model, run)
            loss.backward()
            if of_ours:
                measured.add_loss(float(loss.detach()))
        measured = StepRecord.joined(self._ranks.gathered(measured))
        measured.refuse_not_finite()
        return measured

    def _pack_loss(
        self,
        inputs: PackInputs,
        facts: Mapping[str, Fact],
        reference: dict[Hashable, Tensor] | None,
        tokens: int,
        measured: StepRecord,
    ) -> Tensor:
        """The share of a pack in the step's loss; what is seen on the way is `measured`."""
        loss = torch.zeros((), device=self._device)
        for keys, token_ids_C, hidden_CD in self.model.completion_hidden(inputs):
            known = [facts[str(key)] for key in keys]
            reference_C = None if reference is None else torch.cat([reference[k] for k in keys])
            # Of a chunk only its hidden states are kept for the backward pass, which makes
            # its distributions again: those of all chunks together are no memory's size.
            chunk_loss, chunk, weights = checkpoint(
                self._chunk_loss, hidden_CD, token_ids_C, known, reference_C,
                use_reentrant=False, preserve_rng_state=False,
            )  # fmt: skip
            loss = loss + chunk_loss / tokens
            measured.add(chunk, weights, self._loss.in_loss(chunk))
            del chunk
        return loss

    def _no_loss(self, inputs: PackInputs) -> Tensor:
        """0, with a gradient of 0 for each weight."""
        _, _, hidden_CD = next(self.model.completion_hidden(inputs))
        return 0.0 * self.model.log_softmax(hidden_CD).exp().sum()

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
        self.old.move()
        self._stepping.step(rate, self._seed("rounding", self._steps_done))
        self._steps_done += 1
        return rate, float(norm)

    def _precision(self) -> contextlib.AbstractContextManager[object]:
        if self._memory.autocast is None or self._ranks.mesh is not None:  # gathered in that type
            return contextlib.nullcontext()
        return torch.autocast(self._device.type, dtype=self._memory.autocast)

    def _seed(self, purpose: str, number: int) -> int:
        return make_seed(self._config.run.seed, purpose, self._parent.version, "", number)

    def moved_share(self) -> float:
        """Share of the trained weights that are others than the parent's, as the sampler sees both:
        in student.dtype."""
        moved = sum(
            int((self._as_served(weight) != self._before[name]).sum())
            for name, weight in self._trained.items()
        )
        numbers = sum(weight.numel() for weight in self._trained.values())
        return sum(self._ranks.gathered(moved)) / numbers

    def step_writer(self) -> Callable[[Path], None]:
        """Writes all that the next step depends on, in the middle of an update, into a folder.
        Every rank asks for it, the first one uses it."""
        weights = self._stepping.float32_weights() or {
            name: weight.detach() for name, weight in self._trained.items()
        }
        state = self._whole_state(weights)
        states = self._ranks.gathered(random_states(self._device))

        def write(folder: Path) -> None:
            write_state(folder, *state, self._memory.served)
            write_random(folder, states, self.old.known())

        return write

    def read_step(self, folder: Path) -> None:
        """Go on after the step that `step_writer` wrote into `folder`."""
        weights = read_weights(folder, self._memory.served)
        assert weights is not None, "it is written in any case"
        self._stepping.take_over(weights)
        self._steps_done = read_optimizer(
            folder,
            self._stepping.optimizer,
            self._stepping.shapes,
            self._memory.place(self._device),
        )
        self.old.take_over(read_random(folder, self._device, self._ranks.rank))

    def _whole_state(
        self, weights: Mapping[str, Tensor] | None
    ) -> tuple[dict[str, Any], int, dict[str, Tensor] | None]:
        """The optimiser's state, the steps it has made, and `weights`, whole on the first rank."""
        first = self._ranks.first
        state = gathered_state(self._stepping.optimizer.state_dict(), first)
        if weights is None:
            return state, self._steps_done, None
        whole = {name: gathered(weight, first) for name, weight in weights.items()}
        return state, self._steps_done, whole

    def _as_served(self, weight: Tensor) -> Tensor:
        """What this rank has of a weight."""
        return own_part(weight.detach()).to("cpu", self._memory.served, copy=True)

    def save(self, staging: Path, parent: Path, trainer: Path | None) -> None:
        """The policy as a Hugging Face folder (or PEFT adapter folder) with its processor, in
        student.dtype; into `trainer` what training goes on from. The first rank writes. No step can
        be made after it."""
        if trainer is not None:
            weights = self._stepping.float32_weights() if self._memory.rounded else None
            state = self._whole_state(weights)
            if self._ranks.first:
                write_state(trainer, *state, self._memory.served)
                give_umask_modes(trainer)
        model = self._whole_model()
        if not self._ranks.first:
            return
        staging.mkdir(parents=True, exist_ok=True)
        save_checkpoint(model, staging)
        for file in sorted(parent.iterdir()):
            if file.is_file() and belongs_to_processor(file.name):
                shutil.copyfile(file, staging / file.name)
        give_umask_modes(staging)

    @torch.no_grad()
    def _whole_model(self) -> Any:
        """The model in student.dtype: where it is sharded the parent's, opened anew by the first
        rank, with the trained weights in it. So it is written as one process writes it."""
        if self._ranks.mesh is None:
            return self.model.model.to(self._memory.served)
        whole: Any = None
        if self._ranks.first:
            whole = load_model(self._parent.path, str(self._memory.served).removeprefix("torch."))
            choose_trainable(whole, self._config, self._parent.path)
        weights = dict(whole.named_parameters()) if self._ranks.first else {}
        for name, weight in self._trained.items():
            value = gathered(weight.detach(), self._ranks.first)
            if self._ranks.first:
                weights[name].copy_(value)
        return whole


def belongs_to_processor(name: str) -> bool:
    starts = ("tokenizer", "special_tokens", "added_tokens", "vocab", "merges", "chat_template")
    return name.startswith(starts) or "processor" in name
