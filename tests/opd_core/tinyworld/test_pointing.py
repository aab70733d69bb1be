"""The hints of the tiny models' training point at the right rows."""

from collections.abc import Hashable
from typing import Any

import torch

from opd_core import torchvision_guard
from opd_core.model.prefix_tree import grow, pack
from opd_core.model.tree_attention import packed_attention
from opd_core.model.tree_model import TreeModel
from opd_core.model.vision_input import VisionInput
from opd_core.spans.grounding import format_answer
from opd_core.tinyworld.models import build_model, build_processor
from opd_core.tinyworld.pointing import ListeningAttention, Pointing
from opd_core.tinyworld.scenes import SHORT
from opd_core.types import Span
from tests.known import known


def _setting() -> tuple[Any, TreeModel, Any]:
    torchvision_guard.install()
    tokenizer = build_processor().tokenizer
    model = build_model("student", tokenizer, seed=0)
    return model, TreeModel(model, tokenizer), tokenizer


def test_rows_seconds_and_gradients() -> None:
    model, trees, tokenizer = _setting()
    video = "".join(
        f"<{s}.2 seconds><|vision_start|><|video_pad|><|vision_end|>" for s in range(SHORT.seconds)
    )
    spans: dict[Hashable, Span] = {"a": Span(2.0, 10.0), "b": Span(7.0, 12.0)}
    vision = VisionInput(torch.zeros(4 * SHORT.seconds, 1536), (SHORT.seconds, 2, 2), 1.0)
    packed = pack(
        [
            grow(
                [tokenizer.encode(video + text) for text in ("Please a", "Please the b")],
                [
                    [(key, tokenizer.encode(format_answer(span) + "<|im_end|>"))]
                    for key, span in spans.items()
                ],
                vision,
            )
        ]
    )
    pointing = Pointing(model, tokenizer, inside_layer=1, seconds=SHORT.seconds)
    targets = pointing._targets(packed, spans)

    said = tokenizer.convert_ids_to_tokens(packed.token_ids_N[targets.rows_R.numpy() + 1].tolist())
    assert said == ["2", ".", "1", "0", "7", ".", "1", "2"]
    assert targets.second_R.tolist() == [2, 2, 9, 9, 7, 7, 11, 11]
    assert targets.is_end_R.tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
    assert targets.inside_RS.sum(dim=1).tolist() == [8.0] * 4 + [5.0] * 4
    seen = packed.token_ids_N[targets.video_RS.numpy()]
    assert (seen == model.config.video_token_id).all()

    attention = ListeningAttention(
        packed_attention(packed, torch.device("cpu")), pointing.last_layer
    )
    for _ in trees.completion_distributions(packed, attention):
        pass
    pointing.loss(packed, attention, spans).backward()
    last = model.model.language_model.layers[-1].self_attn
    assert float(last.q_proj.weight.grad.norm()) > 0
    assert float(known(pointing.clock.weight.grad).norm()) > 0
    pointing.close()
