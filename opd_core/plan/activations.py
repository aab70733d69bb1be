"""Bytes that a forward and a backward pass need beside the weights.

Counted from what the layers of transformers do, operation by operation: what autograd saves of each
(tests hold it against `torch.autograd.graph.saved_tensors_hooks`), and what is alive at the worst
moment of a layer that saves nothing. Bytes are a token's unless said otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from opd_core.plan.packs import Pack, blocks_of
from opd_core.plan.shapes import ModelShape, TextShape

Trained = Literal["nothing", "adapter", "language", "all"]
"""`all`: the vision tower too."""
FLOAT32 = 4
HEAD_COPIES = 3
"""[rows, V] float32 numbers at the worst moment of `TreeModel.log_softmax`: the logits, those with
excluded ids, the result."""


@dataclass(frozen=True, slots=True)
class Precision:
    """Bytes of a number."""

    residual: int
    """Between layers."""
    compute: int
    """In the matrix products."""
    casts: bool = False
    """Under autocast: the input of each trained product is cast for it alone."""


@dataclass(frozen=True, slots=True)
class Pass:
    """A forward pass, and what is trained by it."""

    shape: ModelShape
    precision: Precision
    trained: Trained
    checkpointed: bool | float
    """Whether layers compute activations again, or what share of the language model's does."""
    on_cpu: bool
    """There attention repeats heads and copies contexts; CUDA runs FlexAttention."""


def saved(this: Pass, pack: Pack) -> float:
    """Bytes that the forward pass of a pack keeps for its backward pass, logits apart."""
    if this.trained == "nothing":
        return 0.0
    text, width = this.shape.text, this.precision
    around = text.head * 2 * width.residual + _norm(this, text.hidden)  # cos, sin; the last norm
    kept = pack.tokens * around
    if this.on_cpu:
        kept += pack.trees * blocks_of(pack.tree).masks  # as booleans, for all layers
    again = float(this.checkpointed) * text.layers
    kept += again * pack.tokens * text.hidden * width.residual
    kept += (text.layers - again) * saved_by_layer(this, pack)
    return kept + _saved_by_tower(this, pack)


def saved_by_layer(this: Pass, pack: Pack) -> float:
    """Bytes that one layer of the language model saves of a pack."""
    text, width = this.shape.text, this.precision
    size = width.compute
    apart = 3 if width.casts else 1  # autocast casts the input of each product by itself
    queries, keys = text.queries, text.keys
    attention = _norm(this, text.hidden) + size * apart * text.hidden
    attention += _head_norms(this, queries + keys)
    repeated = this.on_cpu and text.kv_heads < text.heads
    attention += size * (queries + 2 * (queries if repeated else keys))
    attention += size * 2 * queries + FLOAT32 * text.heads  # what comes out, twice; its logsumexp
    kept = pack.tokens * (attention + _saved_by_mlp(this))
    if this.on_cpu:
        blocks = blocks_of(pack.tree)
        kept += pack.trees * size * (blocks.masks + 2 * blocks.contexts * queries)
    return kept


def _norm(this: Pass, size: int) -> float:
    """Saved by an RMS norm over `size` numbers: its input in float32, and what it multiplies with
    its weights, where these are trained."""
    scaled = this.precision.residual * size if this.trained != "adapter" else 0
    return FLOAT32 * size + scaled


def _head_norms(this: Pass, size: int) -> float:
    if not this.shape.text.normed_heads:
        return 0.0
    scaled = this.precision.compute * size if this.trained != "adapter" else 0
    return FLOAT32 * size + scaled


def _saved_by_mlp(this: Pass) -> float:
    text, width = this.shape.text, this.precision
    size, apart = width.compute, 2 if width.casts else 1
    dense = size * (apart * text.hidden + 4 * text.inner)
    experts = 0.0
    share = 0.0
    if mixture := text.mixture:
        share = mixture.layers / text.layers
        experts = mixture.active * size * (2 * text.hidden + 4 * mixture.inner)
        experts += size * text.hidden + FLOAT32 * mixture.experts
    return _norm(this, text.hidden) + share * experts + (1 - share) * dense


def _saved_by_tower(this: Pass, pack: Pack) -> float:
    if this.trained != "all":
        return 0.0
    tower, size = this.shape.tower, this.precision.compute
    patches = pack.vision * tower.patches
    hidden = tower.hidden * size
    inner = (4 if tower.gated else 2) * size * tower.inner
    block = hidden if this.checkpointed else 11 * hidden + inner
    merged = (1 + tower.deepstack) * 4 * hidden
    return patches * (tower.pixels * size + tower.layers * block + merged)


def passing(this: Pass, pack: Pack) -> float:
    """Bytes at the worst moment of a pass, of its backward pass where it has one, logits apart."""
    forward = _in_layer(this, pack) + fed(this, pack)
    if this.trained == "nothing":
        return max(forward, _in_tower(this, pack))
    text, size = this.shape.text, this.precision.compute
    on_their_way = pack.tokens * size * 3 * _inner(text)  # gradients
    if this.checkpointed:
        return max(
            _in_tower(this, pack),
            saved(this, pack) + forward,
            saved(this, pack) + saved_by_layer(this, pack) + on_their_way,
        )
    return max(_in_tower(this, pack), saved(this, pack) + max(on_their_way, fed(this, pack)))


def fed(this: Pass, pack: Pack) -> float:
    """Bytes of what the language model is given of the videos, which stay until its pass ends:
    pixels, features twice, and the tower's last."""
    tower, size = this.shape.tower, this.precision.compute
    features = 2 * (1 + tower.deepstack) * tower.out
    patches = tower.patches * (tower.pixels + tower.hidden)
    return pack.vision * size * (features + patches)


def _in_layer(this: Pass, pack: Pack) -> float:
    """Bytes at the worst moment of a layer that saves nothing."""
    text, width = this.shape.text, this.precision
    size = width.compute
    streams = 3 * text.hidden * width.residual  # embeddings, a layer's input, after its attention
    mlp = size * (text.hidden + 3 * _inner(text))
    norm = 2 * FLOAT32 * text.hidden + (size * text.hidden if size < FLOAT32 else 0)
    repeated = 2 * text.queries if this.on_cpu and text.kv_heads < text.heads else 0
    attention = size * (text.hidden + 5 * text.queries + 2 * text.keys + repeated)
    worst = pack.tokens * (streams + max(mlp, norm, attention))
    if this.on_cpu and this.trained == "nothing":
        worst += pack.trees * blocks_of(pack.tree).masks  # as booleans, for all layers
    return worst


def _inner(text: TextShape) -> int:
    """The inner size of the widest layer, over the experts that a token goes through."""
    if text.mixture is None:
        return text.inner
    sparse = text.mixture.inner * text.mixture.active
    return sparse if text.mixture.layers == text.layers else max(text.inner, sparse)


def _in_tower(this: Pass, pack: Pack) -> float:
    """Bytes at the worst moment of the vision tower, which runs before the language model."""
    tower, size = this.shape.tower, this.precision.compute
    patches = pack.vision * tower.patches
    cast = 0 if size == FLOAT32 else FLOAT32
    attention = size * 6 * tower.hidden + cast * 8 * tower.hidden
    mlp = size * (3 * tower.hidden + 2 * tower.inner)
    features = pack.vision * tower.deepstack * tower.out * size
    worst = patches * (tower.pixels * size + max(attention, mlp)) + features
    if this.on_cpu:  # where pixels are float32 before they are cast
        worst = max(worst, patches * tower.pixels * (FLOAT32 + (size if cast else 0)))
    return worst
