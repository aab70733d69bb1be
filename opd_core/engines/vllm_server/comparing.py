"""Whether a server's answer is that of the teacher's weights, as the trainer computes it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from opd_core.config.load import Config
from opd_core.model.agreement import bound_for
from opd_core.types import VideoOPDError

if TYPE_CHECKING:
    from opd_core.prompts.batches import ExampleEncoder
    from opd_core.prompts.encoder import EncodedPrompt


def compare(
    config: Config,
    folder: Path,
    dtype: str,
    encoder: ExampleEncoder,
    prompt: EncodedPrompt,
    answers: Mapping[Hashable, Sequence[int]],
    given: Mapping[Hashable, Sequence[float]],
    address: str,
) -> None:
    """Compare the log-probs `given` to the answers to one prompt with those of the checkpoint in
    `folder`, which is loaded, used and dropped.

    Raises `VideoOPDError` where they are further apart than rounding brings them.
    """
    import torch

    from opd_core.model.prefix_tree import grow, pack
    from opd_core.model.tree_model import TreeModel, choose_device, load_model

    device = choose_device(config.machine.device)
    model = TreeModel(load_model(folder, dtype, device), encoder.prompts.tokenizer)
    tree = grow([prompt.token_ids], [list(answers.items())], prompt.vision)
    apart: list[float] = []
    with torch.inference_mode():
        for keys, token_ids_C, logprobs_CV in model.completion_distributions(pack([tree])):
            ours = logprobs_CV.gather(1, token_ids_C[:, None])[:, 0].tolist()
            theirs = [logprob for key in keys for logprob in given[key]]
            apart += [abs(a - b) for a, b in zip(ours, theirs, strict=True)]
    bound = bound_for(config.rollout.max_engine_mismatch, [dtype], device.type)
    worst = max(apart) if all(one == one for one in apart) else float("nan")
    if worst <= bound.largest and not bound.mean_fault(apart):
        return
    raise VideoOPDError(
        f"the vLLM server at {address} does not score as the weights in {folder} do: a token's "
        f"log-probs are {worst:.3g} apart ({bound.reason}); let it serve that model in "
        f"teacher.dtype = {dtype!r}, with its own processor files, or set vllm_server.compare = "
        "false"
    )
