"""log pi_v of what an update trains on: the log-probs of the policy before its first step.

Where the trainer's own engine has sampled, they came with the rollouts. Where another one has and
the loss needs the trainer's own (`importance.py`), the first step sees its own by itself, and what
later steps train on is run once before it, forward only.

Shape suffixes: C completion tokens of a chunk, T of one completion.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from opd_core.model.prefix_tree import Pack, PrefixTree, pack
from opd_core.model.ranks import Ranks
from opd_core.model.sharding import whole_pass
from opd_core.model.tree_model import TreeModel
from opd_core.types import Rollout
from opd_core.update.importance import Importance
from opd_core.update.shares import even_packs


class OldLogprobs:
    """log pi_v in one update. `precision` opens the forward passes as the training does."""

    moved = False
    """Whether the first step is done: from then on the model is another policy."""

    def __init__(
        self,
        model: TreeModel,
        importance: Importance,
        precision: Callable[[], AbstractContextManager[object]],
        max_tokens_per_pack: int,
        ranks: Ranks,
    ) -> None:
        self._model, self._importance, self._ranks = model, importance, ranks
        self._precision, self._max_tokens = precision, max_tokens_per_pack
        self._own: dict[Hashable, Tensor] = {}

    def remember(self, trees: Sequence[PrefixTree], counted: bool) -> None:
        """Run these trees, whose completions are the keys' rollouts, without dropout.

        Of ranks each is given its own; trees that are not `counted` are another's."""
        assert not self.moved
        self._model.model.eval()
        for group, of_ours in even_packs(trees, counted, self._max_tokens, self._ranks):
            with self._precision():
                known = completion_logprobs(self._model, pack(group))
            self._own |= known if of_ours else {}
        self._model.model.train()

    def move(self) -> None:
        """The first step is being made: what was known before it is all there is, on all ranks."""
        if not self.moved:
            own = {key: logprobs_T.cpu() for key, logprobs_T in self._own.items()}
            for known in self._ranks.gathered(own):
                self._own |= known
        self.moved = True

    def known(self) -> dict[str, Tensor]:
        """Rollout id -> [T], of those whose log-probs were computed here."""
        return {str(key): logprobs_T for key, logprobs_T in self._own.items()}

    def take_over(self, known: Mapping[str, Tensor]) -> None:
        """Go on after the first step, with what was known then."""
        self._own.update(known)
        self.moved = True

    def of(self, rollouts: Sequence[Rollout], chosen_C: Tensor) -> Tensor:
        """[C] log pi_v of whole completions, whose log-probs are now `chosen_C`, no gradient."""
        parts = chosen_C.split([len(r.completion_token_ids) for r in rollouts])
        return torch.cat([self._of(r, part) for r, part in zip(rollouts, parts, strict=True)])

    def _of(self, rollout: Rollout, chosen_T: Tensor) -> Tensor:
        if rollout.answered_by != "student":
            return chosen_T  # another's answer: no policy of ours has sampled it
        if not self._importance.needs_old_logprobs(rollout):
            return torch.tensor(rollout.sampling_logprobs).to(chosen_T)
        if not self.moved:
            return self._own.setdefault(rollout.rollout_id, chosen_T)
        return self._own[rollout.rollout_id].to(chosen_T)


@torch.no_grad()
def completion_logprobs(model: TreeModel, packed: Pack) -> dict[Hashable, Tensor]:
    """A model's log-probs of each completion of a pack, by its key."""

    def run() -> dict[Hashable, Tensor]:
        by_key: dict[Hashable, Tensor] = {}
        for keys, token_ids_C, logprobs_CV in model.completion_distributions(packed):
            chosen_C = logprobs_CV.gather(1, token_ids_C[:, None])[:, 0]
            lengths = [len(packed.completions[key]) for key in keys]
            by_key.update(zip(keys, chosen_C.split(lengths), strict=True))
        return by_key

    return whole_pass(model.model, run)
