"""How many numbers a model is made of, part by part, from its shape."""

from __future__ import annotations

from dataclasses import dataclass

from opd_core.plan.shapes import ModelShape, TextShape, TowerShape


@dataclass(frozen=True, slots=True)
class Parameters:
    """Numbers of each part of a model."""

    embedding: int
    layers: int
    """Of the language model, its last norm among them."""
    head: int
    """0 where it is the embedding."""
    vision: int
    """Tower and mergers."""
    mergers: int
    """Of `vision`: what a token goes through once, and not each of its patches."""
    active_layers: int
    """Of `layers`, those that a token goes through: fewer where there are experts."""
    largest: int
    """Of the largest matrix."""

    @property
    def language(self) -> int:
        return self.embedding + self.layers + self.head

    @property
    def all(self) -> int:
        return self.language + self.vision


def parameters_of(shape: ModelShape) -> Parameters:
    text, tower = shape.text, shape.tower
    embedding = text.vocabulary * text.hidden
    mixture = text.mixture
    dense = text.layers - (mixture.layers if mixture else 0)
    layers = active = text.layers * _attention(text) + text.hidden
    layers += dense * 3 * text.hidden * text.inner
    active = layers
    if mixture:
        one = 3 * text.hidden * mixture.inner
        router = mixture.experts * text.hidden
        layers += mixture.layers * (mixture.experts * one + router)
        active += mixture.layers * (mixture.active * one + router)
    of_experts = 2 * mixture.experts * mixture.inner * text.hidden if mixture else 0
    return Parameters(
        embedding=embedding,
        layers=layers,
        head=0 if shape.tied else embedding,
        vision=_tower(tower) + _mergers(tower),
        mergers=_mergers(tower),
        active_layers=active,
        largest=max(embedding, of_experts),
    )


def lora_parameters(shape: ModelShape, rank: int, modules: frozenset[str]) -> int:
    """Numbers of a LoRA adapter on the named linear layers of the language model."""
    text = shape.text
    mixture = text.mixture
    dense = text.layers - (mixture.layers if mixture else 0)
    sides = {
        "q_proj": (text.hidden + text.queries) * text.layers,
        "k_proj": (text.hidden + text.keys) * text.layers,
        "v_proj": (text.hidden + text.keys) * text.layers,
        "o_proj": (text.queries + text.hidden) * text.layers,
        "gate_proj": (text.hidden + text.inner) * dense,
        "up_proj": (text.hidden + text.inner) * dense,
        "down_proj": (text.inner + text.hidden) * dense,
    }
    return rank * sum(size for name, size in sides.items() if name in modules)


def _attention(text: TextShape) -> int:
    """A layer without its MLP."""
    projections = 2 * text.hidden * (text.queries + text.keys)
    biases = (text.queries + 2 * text.keys) * text.qkv_bias + text.hidden * text.output_bias
    return projections + biases + 2 * text.head * text.normed_heads + 2 * text.hidden


def _tower(tower: TowerShape) -> int:
    hidden, inner = tower.hidden, tower.inner
    norm = hidden if tower.gated else 2 * hidden
    attention = 4 * hidden * hidden + 4 * hidden
    if tower.gated:
        mlp = 3 * hidden * inner + 2 * inner + hidden
    else:
        mlp = 2 * hidden * inner + inner + hidden
    patches = tower.pixels * hidden + (0 if tower.gated else hidden)
    return patches + tower.positions * hidden + tower.layers * (attention + mlp + 2 * norm)


def _mergers(tower: TowerShape) -> int:
    merged = tower.patches * tower.hidden
    one = merged * (merged + 1) + tower.out * (merged + 1)
    norm = tower.hidden if tower.gated else 2 * tower.hidden
    return one + norm + tower.deepstack * (one + 2 * merged)  # these normalise what is merged
