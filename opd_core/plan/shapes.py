"""The shape of a model, read from its config.json alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from opd_core.adapter_folder import base_folder, is_adapter
from opd_core.hub.cache import cache_folder
from opd_core.hub.name import hub_model
from opd_core.model.architectures import Architecture, named_architecture
from opd_core.plan.published import published
from opd_core.types import VideoOPDError


@dataclass(frozen=True, slots=True)
class Mixture:
    """The experts of the layers that have some."""

    experts: int
    active: int
    """Experts that a token goes through."""
    inner: int
    """Inner size of one."""
    layers: int
    """Layers that have experts; the others are dense."""


@dataclass(frozen=True, slots=True)
class TextShape:
    """The language model."""

    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head: int
    vocabulary: int
    qkv_bias: bool
    output_bias: bool
    normed_heads: bool
    mixture: Mixture | None

    @property
    def queries(self) -> int:
        """Numbers of all heads' queries of a token."""
        return self.heads * self.head

    @property
    def keys(self) -> int:
        """Numbers of all heads' keys of a token; there are as many of values."""
        return self.kv_heads * self.head


@dataclass(frozen=True, slots=True)
class TowerShape:
    """The vision tower with its mergers."""

    hidden: int
    inner: int
    layers: int
    heads: int
    out: int
    patch: int
    merge: int
    """Patches of a side that become one token: a token is merge x merge patches."""
    temporal: int
    """Frames of a patch."""
    channels: int
    positions: int
    """Learned positions; 0: none."""
    deepstack: int
    """Layers of the language model that are given features of the tower's middle."""
    gated: bool

    @property
    def patches(self) -> int:
        """Patches of a vision token."""
        return self.merge**2

    @property
    def pixels(self) -> int:
        """Numbers of a patch, as the processor gives them."""
        return self.channels * self.temporal * self.patch**2

    @property
    def frame_bytes(self) -> int:
        """Bytes of the decoded frames behind a vision token, uint8."""
        return self.pixels * self.patches


@dataclass(frozen=True, slots=True)
class ModelShape:
    family: Architecture
    text: TextShape
    tower: TowerShape
    tied: bool
    """Whether the head is the embedding."""


def shape_in(folder: Path) -> tuple[ModelShape, str | None]:
    """The shape of the checkpoint in `folder` (an adapter's base for an adapter), and the published
    model whose shape was taken because nothing is in that folder; None where its own was read.

    Raises `VideoOPDError` naming the file that cannot be read, or the folder whose name tells none.
    """
    if is_adapter(folder):
        folder = base_folder(folder)
    path = folder / "config.json"
    if path.is_file():
        try:
            content = json.loads(path.read_text())
        except (OSError, ValueError, RecursionError) as error:
            raise VideoOPDError(
                f"{path} cannot be read ({type(error).__name__}: {error}); restore it"
            ) from None
        return shape_of(content, path), None
    known = published(folder.name)
    if known is None:
        named = None if folder.is_absolute() else hub_model(folder)
        if named is not None:
            raise VideoOPDError(
                f"there is no folder {folder}, the hub's cache {cache_folder()} has no config.json "
                f"of {named}, and its name tells no published model; bring it there with "
                f"`{named.download_command('config.json')}`, or correct the name"
            )
        raise VideoOPDError(
            f"there is no config.json in {folder}, and its name tells no published model; put the "
            "model's config.json there (its weights are not needed), or correct the path"
        )
    name, content = known
    return shape_of(content, name), name


def shape_of(content: object, where: object) -> ModelShape:
    """The shape that a config.json describes; `where` names it in errors."""
    whole = _Keys(content, str(where))
    family = named_architecture(whole.content.get("model_type"), where)
    text = whole.under(family.text_key)
    tower = whole.under(family.vision_key)
    tied = whole.content.get("tie_word_embeddings", text.content.get("tie_word_embeddings", False))
    return ModelShape(family, _text(text, family), _tower(tower, family), bool(tied))


def _text(keys: _Keys, family: Architecture) -> TextShape:
    hidden, heads = keys.number("hidden_size"), keys.number("num_attention_heads")
    head = family.made_of.head_size or hidden // heads
    if keys.content.get("head_dim") is not None:
        head = keys.number("head_dim")
    bias = bool(keys.content.get("attention_bias", False))
    layers = keys.number("num_hidden_layers")
    return TextShape(
        hidden=hidden,
        inner=keys.number("intermediate_size"),
        layers=layers,
        heads=heads,
        kv_heads=keys.number("num_key_value_heads", heads),
        head=head,
        vocabulary=keys.number("vocab_size"),
        qkv_bias=bias or family.made_of.qkv_bias,
        output_bias=bias,
        normed_heads=family.made_of.normed_heads,
        mixture=None if family.experts is None else _mixture(keys, layers),
    )


def _mixture(keys: _Keys, layers: int) -> Mixture:
    name = "num_experts" if "num_experts" in keys.content else "num_local_experts"
    step = keys.number("decoder_sparse_step", 1)
    dense = keys.listed("mlp_only_layers")
    return Mixture(
        experts=keys.number(name),
        active=keys.number("num_experts_per_tok"),
        inner=keys.number("moe_intermediate_size"),
        layers=sum(i not in dense and (i + 1) % step == 0 for i in range(layers)),
    )


def _tower(keys: _Keys, family: Architecture) -> TowerShape:
    gated = family.made_of.gated_tower
    return TowerShape(
        hidden=keys.number("hidden_size"),
        inner=keys.number("intermediate_size"),
        layers=keys.number("depth"),
        heads=keys.number("num_heads"),
        out=keys.number("out_hidden_size"),
        patch=keys.number("patch_size"),
        merge=keys.number("spatial_merge_size", 2),
        temporal=keys.number("temporal_patch_size", 2),
        channels=keys.number("in_channels", 3),
        positions=0 if gated else keys.number("num_position_embeddings"),
        deepstack=len(keys.listed("deepstack_visual_indexes")),
        gated=gated,
    )


class _Keys:
    """What a section of a config.json says, asked by key."""

    def __init__(self, content: object, where: str) -> None:
        if not isinstance(content, Mapping):
            raise VideoOPDError(f"{where} is no JSON object; restore the model's config.json")
        self.content: Mapping[str, object] = content
        self._where = where

    def under(self, name: str) -> _Keys:
        """A section; where there is none, this one: older files have the language model's keys
        among their own."""
        return _Keys(self.content.get(name, self.content), f"{name} of {self._where}")

    def listed(self, key: str) -> Sequence[object]:
        """What a key lists; nothing where it is absent."""
        value = self.content.get(key) or ()
        if not isinstance(value, list | tuple):
            raise VideoOPDError(
                f"{key} in {self._where} is {value!r} and should be a list; restore the model's "
                "config.json"
            )
        return value

    def number(self, key: str, otherwise: int | None = None) -> int:
        value = self.content.get(key, otherwise)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise VideoOPDError(
                f"{key} in {self._where} is {value!r} and should be a whole number above 0; "
                "restore the model's config.json"
            )
        return value
