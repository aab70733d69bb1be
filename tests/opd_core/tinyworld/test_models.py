"""The tiny models: real formats, one vocabulary, and the shipped weights as promised."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from opd_core import torchvision_guard
from opd_core.model.vocabulary import check_same_vocabulary
from opd_core.prompts.encoder import TIMELENS, PromptEncoder
from opd_core.tinyworld.models import (
    SPECIAL_TOKENS,
    VOCAB_SIZE,
    build_model,
    build_processor,
    parameters,
    save_model,
)
from opd_core.tinyworld.recipes import RECIPES
from opd_core.tinyworld.scenes import SCENES

SHIPPED = Path(__file__).parents[3] / "configs" / "tiny"


@pytest.fixture(scope="module")
def processor() -> Any:
    torchvision_guard.install()
    return build_processor()


def _metadata() -> dict[str, Any]:
    return {
        "fps": 8.0,
        "total_num_frames": 96,
        "duration": 12.0,
        "frames_indices": list(range(96)),
        "video_backend": "pyav",
    }


def test_tokenizer_is_the_same_every_time_and_has_its_size(processor: Any) -> None:
    again = build_processor().tokenizer
    assert again.get_vocab() == processor.tokenizer.get_vocab()
    assert len(again) == VOCAB_SIZE


@pytest.mark.parametrize(
    "text",
    [
        "The event happens in 3.0 - 10.5 seconds<|im_end|>",
        TIMELENS.format(query="a red circle moves across the scene"),
        "déjà vu: 大 42\n\tend",
    ],
)
def test_tokenizer_roundtrip(processor: Any, text: str) -> None:
    tokenizer = processor.tokenizer
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_digits_are_split_one_by_one(processor: Any) -> None:
    assert processor.tokenizer.tokenize("10.25") == ["1", "0", ".", "2", "5"]


def test_special_tokens_are_single_and_adjacent(processor: Any) -> None:
    ids = [processor.tokenizer.encode(token) for token in SPECIAL_TOKENS]
    assert ids == [[i] for i in range(VOCAB_SIZE - len(SPECIAL_TOKENS), VOCAB_SIZE)]
    assert processor.tokenizer.eos_token == "<|im_end|>"


def test_image_and_video_processor_normalise_alike(processor: Any) -> None:
    image, video = processor.image_processor, processor.video_processor
    assert tuple(image.image_mean) == tuple(video.image_mean)
    assert tuple(image.image_std) == tuple(video.image_std)


def test_a_video_costs_one_token_a_second(processor: Any) -> None:
    content = [{"type": "video"}, {"type": "text", "text": TIMELENS.format(query="a red circle")}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    batch = processor(
        text=[text],
        videos=[torch.zeros(96, 3, 64, 64, dtype=torch.uint8)],
        video_metadata=[_metadata()],
        return_tensors="pt",
    )
    assert batch["video_grid_thw"].tolist() == [[12, 2, 2]]
    assert int((batch["input_ids"] == processor.video_token_id).sum()) == 12
    assert 120 < batch["input_ids"].shape[1] < 180
    assert text.endswith("<|im_start|>assistant\n")


def test_saved_model_loads_with_deepstack_and_qwens_generation_config(
    processor: Any, tmp_path: Path
) -> None:
    from transformers import AutoModelForImageTextToText

    model = build_model("student", processor.tokenizer, seed=1)
    save_model(model, processor, tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.float32)
    assert loaded.config.vision_config.deepstack_visual_indexes
    rope = loaded.config.text_config.rope_parameters
    assert sum(rope["mrope_section"]) == loaded.config.text_config.head_dim // 2
    generation = loaded.generation_config
    assert (generation.do_sample, generation.temperature) == (True, 0.7)
    assert (generation.top_p, generation.top_k) == (0.8, 20)
    ours = dict(model.named_parameters())
    for name, weight in loaded.named_parameters():
        assert torch.equal(weight, ours[name].to(torch.bfloat16).float()), name


NAMES = sorted(folder.name for folder in SHIPPED.iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_shipped_weights_load_and_are_what_training_says(name: str) -> None:
    torchvision_guard.install()
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(SHIPPED / name)
    assert model.dtype == torch.bfloat16
    record = json.loads((SHIPPED / name / "TRAINING.json").read_text())
    assert record["parameters"] == parameters(model)
    assert record["role"] == RECIPES[name].size
    assert record["command"] == f"videoopd tinyworld train {name} --out configs/tiny/{name}"
    trained = {key: record["settings"][key] for key in ("steps", "lr", "seed", "inside_layer")}
    assert trained == {key: asdict(RECIPES[name])[key] for key in trained}
    low, high = {"teacher": (1.0e6, 3.0e6), "student": (0.5e6, 1.0e6)}[record["role"]]
    assert low <= record["parameters"] <= high


def test_shipped_teacher_is_far_better_than_the_shipped_student() -> None:
    teacher, student, loose = (
        json.loads((SHIPPED / name / "TRAINING.json").read_text())["eval"]
        for name in ("teacher", "student", "loose-student")
    )
    assert teacher["miou"] > 0.8
    assert 0.3 < student["miou"] < 0.55
    # It finds the moment as often as the other, and says it less exactly.
    assert loose["recall_30"] > student["recall_30"] and loose["recall_70"] < student["recall_70"]


@pytest.mark.parametrize("name", NAMES)
def test_shipped_folders_share_vocabulary_and_processor_with_their_teacher(name: str) -> None:
    teacher = SHIPPED / {"short": "teacher", "long": "long-teacher"}[RECIPES[name].scene]
    check_same_vocabulary(SHIPPED / name, teacher)
    for file in ("processor_config.json", "chat_template.jinja", "tokenizer.json"):
        assert (SHIPPED / name / file).read_bytes() == (teacher / file).read_bytes(), file


@pytest.mark.parametrize("name", ["student"])
def test_shipped_processors_are_those_the_code_builds(name: str) -> None:
    built = build_processor(SCENES[RECIPES[name].scene])
    shipped = PromptEncoder(SHIPPED / name).processor
    assert shipped.tokenizer.get_vocab() == built.tokenizer.get_vocab()
    assert shipped.chat_template == built.chat_template
    assert shipped.video_processor.to_dict() == built.video_processor.to_dict()
