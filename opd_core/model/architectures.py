"""All that is known of a family of video-language models: one frozen record each.

Whoever needs to know how a family is built asks its record: positions, trees, the update, LoRA,
lm_head, vLLM, frame sizes, prompts. Nothing else in the project names a module, a token or a class
of a family. To add one, add a record to `ARCHITECTURES` (CONTRIBUTING.md, "Add an architecture").

Paths are dotted, as in the transformers model that `AutoModelForImageTextToText` opens.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any, Literal

from opd_core.extensions import Quantise
from opd_core.types import VideoOPDError

SizeRuleName = Literal["qwen3_vl", "qwen2_vl"]
THIS_FILE = f"{__name__.replace('.', '/')}.py"


@dataclass(frozen=True, slots=True)
class Experts:
    """The place of a model's experts: fused, one tensor for all experts of a layer.

    E experts of hidden size D and inner size I. No `nn.Linear` is among them, so LoRA leaves them
    alone. A row of a tree is routed by itself, so a tree stays equal to separate sequences. The
    router's balancing loss is no part of any objective here: it is added by the model's own loss,
    which is never asked.
    """

    module: str
    """Within a layer, as in `mlp.experts`."""
    gate_up: str
    """[E, 2I, D] of that module in transformers: the gate's rows, then those of `up`."""
    down: str
    """[E, D, I] of that module in transformers."""
    router: str
    """Within a layer: the module that chooses experts."""
    published_transposed: bool
    """Whether published files hold [E, D, 2I] and [E, I, D], which is then what we write and vLLM
    reads: transformers takes both forms, by their shapes, and by itself writes its own."""

    vllm_settings: tuple[tuple[str, bool], ...]
    """Settings of the text config that vLLM asks for and transformers has in this one way, whatever
    the checkpoint's config.json says or leaves out."""

    def holds(self, name: str) -> bool:
        """Whether a stored tensor is all experts' gate_up or down of a layer."""
        return name.endswith((f".{self.module}.{self.gate_up}", f".{self.module}.{self.down}"))


@dataclass(frozen=True, slots=True)
class Layers:
    """What layers are made of that config.json does not say; `opd_core/plan/` counts by it."""

    head_size: int | None
    """Of a head where config.json says none; None: hidden size / heads."""
    normed_heads: bool
    """Whether queries and keys are normalised, head by head."""
    qkv_bias: bool
    """Whether they have biases whatever `attention_bias` of config.json says."""
    gated_tower: bool
    """A vision tower with gated MLPs and norms without biases, and no learned positions; else two
    matrices an MLP, layer norms, learned positions."""


@dataclass(frozen=True, slots=True)
class Architecture:
    model_type: str
    """What config.json calls the family."""
    published: str
    """Checkpoints that people know, for the error about others."""
    model_class: str
    """The class of transformers. vLLM's registry has it under the same name, and config.json's
    `architectures` names it."""

    backbone: str
    """What gives last hidden states of token ids and pixels."""
    text: str
    """The language model, which LoRA adapts."""
    layers: str
    """Its list of decoder layers."""
    embedding: str
    """Its token embedding."""
    lm_head: str
    """What turns last hidden states into logits. Tied to the embedding or not, as the checkpoint's
    `tie_word_embeddings` says."""
    vision: str
    """The vision tower. The last part of the path is also what marks stored weights of it, under
    every prefix that this family was ever saved with, and where vLLM's model keeps it."""
    mergers: tuple[str, ...]
    """What turns its features into vision tokens; frozen with it (`update.freeze_vision`). In the
    tower, or beside it."""
    text_key: str
    """Part of the config that describes the language model."""
    vision_key: str
    made_of: Layers
    experts: Experts | None
    """None: dense."""
    lora_modules: tuple[str, ...]
    """What LoRA adapts unless the config says otherwise: last parts of names of `nn.Linear` layers
    of the language model."""

    placeholders: tuple[str, ...]
    """Tokens that stand for pixels or enclose them: no policy may say one."""
    video_token_id: str
    """Field of the config: the id of the token that a frame's pixels take the place of."""
    grids: Literal["one a frame pair", "one a video"]
    """How the rope index sees a video. "one a frame pair": each is a grid of its own with time 0,
    and times are words of the prompt. "one a video": the time of a vision token counts in
    `tokens_per_second` of the vision config, and the prompt names no times. Text goes on at the
    largest position of the grid before it, plus one, in both (`positions.py`)."""
    words_per_frame_pair: int
    """Tokens that a prompt has for each beside its vision tokens, generously: time stamp, marks."""

    pixels: str
    """What the processor calls the patches of videos, [patches, ...],"""
    grid: str
    """their (time, height, width) in patches, [videos, 3],"""
    second_per_grid: str
    """and the seconds between vision tokens in time, where it gives them."""
    min_frames: int
    """Frames that a video is given at least."""
    size_rule: SizeRuleName
    """What its processor chooses a video's size by (`opd_core/video/frame_size.py`): "qwen3_vl",
    the pixels of all frames; "qwen2_vl", those of each."""

    def module(self, model: Any, path: str) -> Any:
        """The part of a transformers model at one of the paths above."""
        return reduce(getattr, path.split("."), model)

    def is_vision(self, name: str) -> bool:
        """Whether a weight or module is of the vision tower, by its name in a model, a checkpoint
        of any age, or vLLM."""
        parts = name.split(".")
        return any(path.rsplit(".", 1)[-1] in parts for path in (self.vision, *self._beside()))

    def freeze_vision(self, model: Any) -> None:
        """Take the gradient from the tower and the mergers."""
        for path in (self.vision, *self._beside()):
            self.module(model, path).requires_grad_(False)

    def _beside(self) -> tuple[str, ...]:
        """Mergers that are not in the tower."""
        return tuple(path for path in self.mergers if not path.startswith(f"{self.vision}."))

    def is_text(self, name: str) -> bool:
        """Whether a module of a transformers model is in the language model."""
        return name.startswith(f"{self.text}.")

    def text_settings(self, config: Any) -> Any:
        """The language model's part of a transformers config."""
        return getattr(config, self.text_key)

    def vision_settings(self, config: Any) -> Any:
        return getattr(config, self.vision_key)

    def vllm_overrides(self) -> dict[str, object]:
        """Settings of config.json for vLLM, so that it computes what transformers does."""
        settings = {} if self.experts is None else dict(self.experts.vllm_settings)
        return {self.text_key: settings} if settings else {}

    def load_class(self) -> Any:
        """The family's class in transformers, whose `config_class` is that of its config."""
        import transformers

        return getattr(transformers, self.model_class)

    def is_linear(self, name: str) -> bool:
        """Whether a stored matrix within a layer is one that LoRA may adapt: not of the vision
        tower, and no router."""
        router = self.experts is not None and f".{self.experts.router}." in name
        return not router and not self.is_vision(name)

    def refuse_quantise(self, how: Quantise) -> None:
        """Raises `VideoOPDError` where hardly any weight would be quantised: fused experts are no
        linear layers."""
        if how != "none" and self.experts is not None:
            raise VideoOPDError(
                f"teacher.quantise = {how!r} is for linear layers, and the experts of "
                f"{self.model_type}, most of its weights, are none; set teacher.quantise = 'none'"
            )

    def refuse_lora_of(self, unknown: Iterable[str], known: Iterable[str]) -> None:
        """Raises `VideoOPDError` where `update.lora.target_modules` has names that are none of the
        `known` last parts of names of linear layers."""
        if not (names := sorted(unknown)):
            return
        experts = ""
        if self.experts is not None:
            experts = (
                f"; the experts of {self.model_type} ({self.experts.gate_up}, {self.experts.down}) "
                f"are one tensor a layer and its router ({self.experts.router}) is no linear layer "
                "either, so LoRA leaves both as they are: remove [update.lora] to train them"
            )
        raise VideoOPDError(
            f"update.lora.target_modules names {names[0]!r}, which is no linear layer of the "
            f"language model; they are: {', '.join(sorted(known))}{experts}"
        )


_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")

QWEN3_VL = Architecture(
    model_type="qwen3_vl",
    published="Qwen3-VL-2B to -32B, TimeLens-8B, TimeLens2",
    model_class="Qwen3VLForConditionalGeneration",
    backbone="model",
    text="model.language_model",
    layers="model.language_model.layers",
    embedding="model.language_model.embed_tokens",
    lm_head="lm_head",
    vision="model.visual",
    mergers=("model.visual.merger", "model.visual.deepstack_merger_list"),
    text_key="text_config",
    vision_key="vision_config",
    made_of=Layers(head_size=128, normed_heads=True, qkv_bias=False, gated_tower=False),
    experts=None,
    lora_modules=(*_ATTENTION, "gate_proj", "up_proj", "down_proj"),
    placeholders=(
        "<|vision_start|>",
        "<|vision_end|>",
        "<|vision_pad|>",
        "<|image_pad|>",
        "<|video_pad|>",
    ),
    video_token_id="video_token_id",
    grids="one a frame pair",
    words_per_frame_pair=16,
    pixels="pixel_values_videos",
    grid="video_grid_thw",
    second_per_grid="second_per_grid_ts",
    min_frames=4,
    size_rule="qwen3_vl",
)

QWEN3_VL_MOE = replace(
    QWEN3_VL,
    model_type="qwen3_vl_moe",
    published="Qwen3-VL-30B-A3B, -235B-A22B",
    model_class="Qwen3VLMoeForConditionalGeneration",
    made_of=replace(QWEN3_VL.made_of, head_size=None),
    experts=Experts(
        module="mlp.experts",
        gate_up="gate_up_proj",
        down="down_proj",
        router="mlp.gate",
        published_transposed=True,
        vllm_settings=(("norm_topk_prob", True),),
    ),
    lora_modules=_ATTENTION,
)

QWEN2_5_VL = replace(
    QWEN3_VL,
    model_type="qwen2_5_vl",
    published="Qwen2.5-VL-3B to -72B, TimeLens-7B",
    model_class="Qwen2_5_VLForConditionalGeneration",
    made_of=Layers(head_size=None, normed_heads=False, qkv_bias=True, gated_tower=True),
    mergers=("model.visual.merger",),
    grids="one a video",
    words_per_frame_pair=0,
    size_rule="qwen2_vl",
)

ARCHITECTURES = {a.model_type: a for a in (QWEN3_VL, QWEN3_VL_MOE, QWEN2_5_VL)}


def architecture_of(config: Any) -> Architecture:
    """The record of a transformers config. Raises `VideoOPDError` for a family without one."""
    return named_architecture(config.model_type, config.name_or_path or "the model")


def architecture_in(folder: Path) -> Architecture:
    """The record of a full checkpoint folder, from its config.json alone.

    Raises `VideoOPDError` naming the file where that is none, or of a family without a record.
    """
    path = folder / "config.json"
    try:
        model_type = json.loads(path.read_text())["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise VideoOPDError(
            f"{folder} is no loadable checkpoint (no readable config.json: "
            f"{type(error).__name__}: {error}); give a folder with config.json and safetensors "
            "weights"
        ) from None
    return named_architecture(model_type, path)


def named_architecture(model_type: object, where: object) -> Architecture:
    family = ARCHITECTURES.get(str(model_type))
    if family is None:
        known = "; ".join(f"{a.model_type} ({a.published})" for a in ARCHITECTURES.values())
        raise VideoOPDError(
            f"{where} is of model_type {model_type!r}, whose prompts, positions and layers are not "
            f"known here; use a checkpoint of {known}, or describe the family in {THIS_FILE}"
        )
    return family
