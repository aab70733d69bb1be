"""One forward pass over trees equals one pass a sequence by plain transformers, and its gradients.

For Qwen3-VL, its mixture of experts and Qwen2.5-VL, of random weights, in float32 on the CPU. The
reference calls the models as anyone would: input ids, pixels, token types, no mask; with positions
counted by hand, because transformers' own continue text inside a Qwen2.5-VL video.
"""

import copy
from collections.abc import Hashable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

from opd_core.engines.base import Request, SamplingParams, draw_tokens, uniforms
from opd_core.engines.hf.sampling import HFEngine
from opd_core.model import tree_attention
from opd_core.model.architectures import ARCHITECTURES
from opd_core.model.cuda_attention import CudaPackedAttention, causal_runs
from opd_core.model.prefix_tree import Pack, PrefixTree, grow, pack
from opd_core.model.tree_model import TreeModel
from opd_core.model.vision_input import VisionInput
from opd_core.prompts.encoder import EncodedPrompt
from opd_core.types import VideoOPDError
from tests.opd_core.model.positions_by_hand import by_hand

Models = tuple[str, TreeModel, Any]

VIDEO, IMAGE, START, END, EOS = 90, 91, 92, 93, 2
VOCABULARY = 96


class Tokenizer:
    """Only what `excluded_token_ids` and the end of an answer need."""

    eos_token_id = EOS

    def get_vocab(self) -> dict[str, int]:
        known = {f"t{i}": i for i in range(VIDEO)}
        return known | {
            "<|video_pad|>": VIDEO,
            "<|image_pad|>": IMAGE,
            "<|vision_start|>": START,
            "<|vision_end|>": END,
        }


def qwen(kind: str) -> Any:
    from opd_core import torchvision_guard

    torchvision_guard.install()
    text = {
        "vocab_size": VOCABULARY,
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 12,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2],
        },
    }  # fmt: skip
    ids = {
        "image_token_id": IMAGE,
        "video_token_id": VIDEO,
        "vision_start_token_id": START,
        "vision_end_token_id": END,
    }
    torch.manual_seed(0)
    if kind != "qwen2_5_vl":
        model_class = ARCHITECTURES[kind].load_class()
        vision = {
            "depth": 2, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2,
            "out_hidden_size": 48, "num_position_embeddings": 16, "patch_size": 4,
            "deepstack_visual_indexes": [0],
        }  # fmt: skip
        if kind == "qwen3_vl_moe":
            # The balancing loss that the config asks for is of the model's own loss, not of ours.
            text |= {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 40,
                     "mlp_only_layers": [1], "output_router_logits": True}  # fmt: skip
        config = model_class.config_class(text_config=text, vision_config=vision, **ids)
        model = model_class(config)
    else:
        from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

        vision = {
            "depth": 2, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2,
            "out_hidden_size": 48, "patch_size": 4, "window_size": 16,
            "fullatt_block_indexes": [1], "tokens_per_second": 2,
        }  # fmt: skip
        model = Qwen2_5_VLForConditionalGeneration(
            Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids)
        )
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    return model.eval()


def video(
    kind: str, frames: int, height: int, width: int, seed: int
) -> tuple[list[int], VisionInput]:
    """(prompt tokens of the video, its pixels): Qwen3-VL has time stamps between frames."""
    generator = torch.Generator().manual_seed(seed)
    patches = torch.randn(frames * height * width, 3 * 2 * 4 * 4, generator=generator)
    pads = [VIDEO] * (height * width // 4)
    if kind != "qwen2_5_vl":
        body = [t for f in range(frames) for t in [5, 6 + f, START, *pads, END]]
    else:
        body = [START, *pads * frames, END]
    return [3, 4, *body], VisionInput(patches, (frames, height, width), 1.0)


def words(generator: torch.Generator, low: int, high: int) -> list[int]:
    count = int(torch.randint(low, high, (1,), generator=generator))
    return torch.randint(3, VIDEO, (count,), generator=generator).tolist()


SHAPES = {
    "one sentence, one rollout": [(3, 2, 2, [1])],
    "one sentence, eight rollouts": [(4, 4, 2, [8])],
    "five sentences of one to three rollouts": [(5, 2, 4, [1, 2, 3, 1, 2])],
    "a batch of unequal trees": [(3, 2, 2, [2, 1]), (6, 4, 4, [1]), (2, 2, 2, [3, 3, 3])],
}


def build(
    kind: str, shape: list[tuple[int, int, int, list[int]]], seed: int = 0
) -> tuple[list[PrefixTree], dict[Hashable, tuple[list[int], VisionInput, list[int]]]]:
    """Trees, and every sequence by itself: key -> (prompt, vision, completion)."""
    generator = torch.Generator().manual_seed(seed)
    trees = []
    apart: dict[Hashable, tuple[list[int], VisionInput, list[int]]] = {}
    for t, (frames, height, width, rollouts) in enumerate(shape):
        tokens, vision = video(kind, frames, height, width, seed + t)
        prompts = [tokens + words(generator, 3, 9) for _ in rollouts]
        completions = [
            [((t, p, i), words(generator, 1, 12)) for i in range(count)]
            for p, count in enumerate(rollouts)
        ]
        trees.append(grow(prompts, completions, vision))
        for prompt, answers in zip(prompts, completions, strict=True):
            apart |= {key: (prompt, vision, answer) for key, answer in answers}
    return trees, apart


def by_key(model: TreeModel, packed: Pack, layout: Any = None) -> dict[Any, torch.Tensor]:
    found = {}
    for keys, token_ids_C, logprobs_CV in model.completion_distributions(packed, layout):
        chosen_C = logprobs_CV.gather(1, token_ids_C[:, None])[:, 0]
        start = 0
        for key in keys:
            stop = start + len(packed.completions[key])
            found[key] = chosen_C[start:stop]
            start = stop
    return found


def plain_logits(model: Any, token_ids: list[int], vision: VisionInput) -> torch.Tensor:
    """[T, V]"""
    whole = torch.tensor([token_ids])
    vision_config = model.config.vision_config
    places = by_hand(
        [t == VIDEO for t in token_ids],
        vision.grid_thw,
        vision.second_per_grid,
        vision_config.tokens_per_second if model.config.model_type == "qwen2_5_vl" else None,
    )
    output = model(
        input_ids=whole,
        pixel_values_videos=vision.patches,
        video_grid_thw=torch.tensor([vision.grid_thw]),
        mm_token_type_ids=(whole == VIDEO).int() * 2,
        position_ids=torch.tensor(places[:-1]).T[:, None],
        use_cache=False,
    )
    logits: torch.Tensor = output.logits[0]
    return logits


def separately(
    model: Any,
    prompt: list[int],
    vision: VisionInput,
    completion: list[int],
    excluded: Iterable[int],
) -> torch.Tensor:
    logits = plain_logits(model, [*prompt, *completion], vision)[len(prompt) - 1 : -1]
    logits[:, list(excluded)] = -torch.inf
    return logits.log_softmax(1).gather(1, torch.tensor(completion)[:, None])[:, 0]


@pytest.fixture(scope="module", params=["qwen3_vl", "qwen3_vl_moe", "qwen2_5_vl"])
def models(request: pytest.FixtureRequest) -> Models:
    plain = qwen(request.param)
    return request.param, TreeModel(copy.deepcopy(plain), Tokenizer()), plain


@pytest.mark.parametrize("blocks", ["dense", "blocks of 16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_log_probs_and_gradients_equal_separate_sequences(
    models: Models, shape: str, blocks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, tree_model, plain = models
    if blocks != "dense":
        monkeypatch.setattr(tree_attention, "DENSE_TREE_TOKENS", 8)
        monkeypatch.setattr(tree_attention, "BLOCK_TOKENS", 16)
    trees, apart = build(kind, SHAPES[shape])
    got = by_key(tree_model, pack(trees))
    assert got.keys() == apart.keys()
    expected = {k: separately(plain, *v, tree_model.excluded_ids) for k, v in apart.items()}
    for key, value in expected.items():
        torch.testing.assert_close(got[key], value, atol=1e-5, rtol=0)

    tree_model.model.zero_grad()
    plain.zero_grad()
    torch.stack([v.sum() for v in got.values()]).sum().backward()
    torch.stack([v.sum() for v in expected.values()]).sum().backward()
    ours = dict(tree_model.model.named_parameters())
    compared = 0
    for name, parameter in plain.named_parameters():
        if parameter.grad is None:
            assert ours[name].grad is None, name
            continue
        difference = (ours[name].grad - parameter.grad).norm()
        # float32 rounding of two orders of summation; the floor is for gradients that are zero
        # but for rounding (attention's key bias).
        assert difference <= 1e-5 * parameter.grad.norm() + 1e-4, name
        compared += 1
    assert compared > 20


@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()  # on the CPU FlexAttention has no backward
def test_the_attention_of_cuda_computes_the_same(models: Models, shape: str) -> None:
    kind, tree_model, _ = models
    trees, _ = build(kind, SHAPES[shape])
    packed = pack(trees)
    expected = by_key(tree_model, packed)
    for attention in (CudaPackedAttention(packed, "cpu"), InRuns(packed, "cpu")):
        for key, value in by_key(tree_model, packed, attention).items():
            torch.testing.assert_close(value, expected[key], atol=1e-5, rtol=0)


class InRuns(CudaPackedAttention):
    """As in lower precision, with short roots."""

    def __init__(self, packed: Pack, device: str) -> None:
        super().__init__(packed, device)
        self._spans = causal_runs(packed, run=4, shortest=8, others=0)
        assert any(causal for _, _, causal in self._spans)

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        return self._by_runs(query, key, value, scaling)


def test_gradients_with_checkpointing_are_the_same(models: Models) -> None:
    kind, tree_model, _ = models
    trees, _ = build(kind, SHAPES["a batch of unequal trees"])
    grads = []
    for checkpointing in (False, True):
        model = TreeModel(copy.deepcopy(tree_model.model), Tokenizer())
        if checkpointing:
            model.model.gradient_checkpointing_enable({"use_reentrant": False})
        model.model.train()
        model.model.zero_grad()
        torch.stack([v.sum() for v in by_key(model, pack(trees)).values()]).sum().backward()
        grads.append({n: p.grad for n, p in model.model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name, gradient in grads[0].items():
        torch.testing.assert_close(gradient, grads[1][name], atol=1e-5, rtol=1e-5, msg=name)


def test_rows_go_through_lm_head_in_chunks_of_whole_completions(models: Models) -> None:
    kind, tree_model, _ = models
    trees, _ = build(kind, SHAPES["a batch of unequal trees"])
    packed = pack(trees)
    chunked = TreeModel(tree_model.model, Tokenizer(), rows_per_chunk=5)
    sizes = [len(rows) for _, rows, _ in chunked.completion_distributions(packed)]
    assert len(sizes) > 3 and max(sizes) < 5 + 12
    for key, value in by_key(chunked, packed).items():
        torch.testing.assert_close(value, by_key(tree_model, packed)[key], atol=1e-6, rtol=0)


def requests(kind: str) -> list[list[Request]]:
    generator = torch.Generator().manual_seed(3)
    result = []
    for v, (frames, sentences) in enumerate([(3, 3), (5, 1), (2, 2)]):
        tokens, vision = video(kind, frames, 2, 2, seed=v)
        group = []
        for s in range(sentences):
            prompt = EncodedPrompt(tuple(tokens + words(generator, 3, 9)), vision)
            seeds = tuple(100 * v + 10 * s + i for i in range(1 + (v + s) % 4))
            group.append(Request((v, s), prompt, seeds))
        result.append(group)
    return result


def test_sampling_in_trees_equals_sampling_one_by_one_and_scoring(models: Models) -> None:
    kind, tree_model, _ = models
    engine = HFEngine(tree_model, Tokenizer())
    params = SamplingParams(max_new_tokens=60)
    asked = requests(kind)
    together = engine.sample(asked, params)
    reasons, lengths = set(), set()
    trees = []
    for group in asked:
        answers = []
        for request in group:
            for i, seed in enumerate(request.seeds):
                alone = engine.sample([[Request("x", request.prompt, (seed,))]], params)["x"][0]
                sample = together[request.key][i]
                assert sample.token_ids == alone.token_ids
                assert sample.logprobs == pytest.approx(alone.logprobs, abs=1e-5)
                reasons.add(sample.finish_reason)
                lengths.add(len(sample.token_ids))
                assert (sample.token_ids[-1] == EOS) == (sample.finish_reason == "stop")
                assert not set(sample.token_ids) & set(tree_model.excluded_ids)
            answers.append(
                [((request.key, i), s.token_ids) for i, s in enumerate(together[request.key])]
            )
        prompts = [r.prompt.token_ids for r in group]
        trees.append(grow(prompts, answers, group[0].prompt.vision))
    assert reasons == {"stop", "length"} and len(lengths) > 3, "rows ended at different times"
    for (key, i), logprobs in by_key(tree_model, pack(trees)).items():
        assert together[key][i].logprobs == pytest.approx(logprobs.tolist(), abs=1e-5)


def test_a_split_prefill_samples_the_same(models: Models) -> None:
    kind, tree_model, _ = models
    params = SamplingParams(max_new_tokens=8)
    whole = HFEngine(tree_model, Tokenizer()).sample(requests(kind), params)
    parts = HFEngine(tree_model, Tokenizer(), max_tokens_per_pack=10).sample(requests(kind), params)
    for key, samples in whole.items():
        assert [s.token_ids for s in samples] == [s.token_ids for s in parts[key]]


def test_greedy_is_the_likeliest_token_of_plain_generate(models: Models) -> None:
    kind, tree_model, plain = models
    request = requests(kind)[0][0]
    params = SamplingParams(max_new_tokens=6, greedy=True)
    (sample,) = HFEngine(tree_model, Tokenizer()).sample(
        [[Request("x", request.prompt, (0,))]], params
    )["x"]
    prompt, vision = request.prompt.token_ids, request.prompt.vision
    written: list[int] = []
    for _ in range(len(sample.token_ids)):
        logits = plain_logits(plain, [*prompt, *written], vision)[-1]
        logits[list(tree_model.excluded_ids)] = -torch.inf
        written.append(int(logits.argmax()))
    assert list(sample.token_ids) == written


def test_sampled_frequencies_are_the_distribution() -> None:
    logits = torch.tensor([2.0, 0.0, -1.0, -torch.inf, 1.0])
    logprobs = logits.log_softmax(0)
    draws = uniforms(list(range(20_000)), 1)[:, 0]
    tokens = draw_tokens(logprobs.expand(len(draws), -1), draws, SamplingParams(1))
    shares = torch.bincount(tokens, minlength=5) / len(draws)
    assert shares[3] == 0
    torch.testing.assert_close(shares, logprobs.exp(), atol=0.012, rtol=0)


def test_truncated_sampling_truncates_only_the_draw() -> None:
    logprobs = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    draws = uniforms(list(range(2000)), 1)[:, 0]
    wide = logprobs.expand(len(draws), -1)
    assert set(draw_tokens(wide, draws, SamplingParams(1, top_p=0.7)).tolist()) == {0, 1}
    assert set(draw_tokens(wide, draws, SamplingParams(1, top_k=3)).tolist()) == {0, 1, 2}
    cold = draw_tokens(wide, draws, SamplingParams(1, temperature=0.05))
    assert set(cold.tolist()) == {0}


def test_an_unknown_architecture_is_refused() -> None:
    plain = qwen("qwen3_vl")
    plain.config.model_type = "llava"
    with pytest.raises(VideoOPDError, match="'llava'.*qwen3_vl"):
        TreeModel(plain, Tokenizer())
