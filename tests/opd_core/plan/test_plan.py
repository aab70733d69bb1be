"""Plans of the shipped configs, and of settings whose memory is known from elsewhere."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest

from opd_core.config.load import Config, load_config
from opd_core.config.toml_text import toml_value
from opd_core.plan import beside, lengths, memory, packs, plan_of_config
from opd_core.plan.cards import CARDS, card, card_of_device
from opd_core.plan.lengths import Annotations, words_of
from opd_core.plan.plan import Machine, Plan, plan
from opd_core.plan.present import ram
from opd_core.plan.published import published
from opd_core.types import GroundingExample, Span, VideoOPDError
from opd_core.video import packets
from tests.known import known

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
EIGHT = CONFIGS / "video_opd_qwen3vl.toml"
SHIPPED = {
    "video_opd_qwen3vl": ("H100", 1),
    "qwen3vl_8b_lora": ("H100", 1),
    "qwen3vl_8b_8cards": ("H100", 8),
    "qwen3vl_4b_from_timelens": ("L40S", 1),
    "qwen3vl_2b_from_timelens": ("L40S", 1),
    "qwen3vl_2b_lora_24gb": ("RTX 4090", 1),
}
"""Config -> the card that its first lines promise, and how many."""
FLOAT32 = ["update.weights='float32'", "update.optimizer='adamw'"]


def planned(path: Path, on: str = "H100", devices: int = 1, overrides: list[str] | None = None
            ) -> Plan:  # fmt: skip
    return plan(load_config(path, overrides or []), Machine(card(on), None, devices))


def parts(made: Plan, stage: str) -> dict[str, float]:
    """GB of each part of a stage on the device."""
    (found,) = (s for s in made.stages if s.stage == stage)
    return {part.name: part.bytes / 1e9 for part in found.memory.device}


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_a_shipped_config_fits_the_card_that_it_names(name: str) -> None:
    on, devices = SHIPPED[name]
    path = CONFIGS / f"{name}.toml"
    head = " ".join(path.read_text().split("#\n")[0].split())
    assert f"{int(CARDS[on].memory / 1e9)} GB" in head
    made = planned(path, on, devices)
    assert made.fits, [s.stage for s in made.stages if not s.fits]
    assert {s.stage for s in made.stages} == set(memory.STAGES)
    assert made.student.published and made.teacher.published


def test_every_shipped_config_of_real_models_is_checked() -> None:
    real = {p.stem for p in CONFIGS.glob("*.toml") if published(load_config(p).student.path.name)}
    assert real == SHIPPED.keys()


def test_what_is_for_eight_cards_does_not_fit_on_one() -> None:
    made = planned(CONFIGS / "qwen3vl_8b_8cards.toml")
    assert [s.stage for s in made.stages if not s.fits] == ["update"]


def test_the_8b_update_in_8_bits_with_16k_tokens_a_pack_fits_80_gb() -> None:
    config = load_config(EIGHT)
    assert config.update.max_tokens_per_pack == 16384
    made = planned(EIGHT, overrides=["video.max_video_tokens=12288"])  # one video a pack
    assert 16_000 < made.prompt_tokens < 16_384
    (update,) = (s for s in made.stages if s.stage == "update")
    assert update.memory.on_device < 80e9


@pytest.mark.parametrize(
    ("settings", "gigabytes"),
    [
        (FLOAT32, 133 - 1.15),  # the frozen tower lies in bfloat16, not in float32
        (["update.optimizer='adamw_8bit'"], 50.3),
        (["update.optimizer='adamw_4bit'"], 42),
        ([*FLOAT32, "update.offload=true"], 34),
        ([*FLOAT32, "update.lora.rank=32", "update.lora.alpha=32"], 18.9),
    ],
)  # fmt: skip
def test_weights_gradients_and_state_of_8b_are_those_of_the_literature(
    settings: list[str], gigabytes: float
) -> None:
    made = parts(planned(EIGHT, overrides=settings), "update")
    lasting = sum(made.get(n, 0.0) for n in ("weights", "gradients", "optimiser's state"))
    assert lasting == pytest.approx(gigabytes, rel=0.02)


def test_a_quantised_teacher_is_about_35_gb() -> None:
    made = planned(EIGHT, overrides=["teacher.quantise='fp8'"])
    assert parts(made, "score")["weights"] == pytest.approx(35.5, abs=0.3)


@pytest.mark.parametrize("stage", memory.STAGES)
def test_a_remedy_makes_the_stage_fit_and_is_needed(stage: str) -> None:
    settings = [*FLOAT32, "rollout.prompts_per_batch=64", "evaluate.prompts_per_batch=64",
                "rollout.max_new_tokens=4096", "update.max_tokens_per_pack=131072",
                "rollout.rollouts_per_example=8"]  # fmt: skip
    made = planned(EIGHT, overrides=settings)
    (found,) = (s for s in made.stages if s.stage == stage)
    assert not found.fits and found.remedy
    given = [f"{key}={toml_value(value)}" for key, value in found.remedy.items()]
    after = planned(EIGHT, overrides=[*settings, *given])
    assert next(s.fits for s in after.stages if s.stage == stage)


def test_what_the_teacher_samples_is_mended_in_the_teacher() -> None:
    made = planned(
        EIGHT, "A100-40", overrides=["rollout.source='teacher'", "update.objective='sft'"]
    )
    rollout = next(s for s in made.stages if s.stage == "rollout")
    assert not rollout.fits and rollout.remedy is not None
    assert "teacher.quantise" in rollout.remedy


def test_8b_on_24_gb_takes_lora_and_another_teacher() -> None:
    made = plan(load_config(EIGHT), Machine(card("RTX 4090"), None))
    by_stage = {s.stage: s for s in made.stages}
    assert "update.lora.rank" in (by_stage["update"].remedy or {})
    assert not by_stage["score"].fits and by_stage["score"].remedy is None


def test_stages_that_a_config_has_not_are_not_planned() -> None:
    uniform = planned(EIGHT, overrides=["focus.curriculum='uniform'", "update.objective='sft'"])
    assert [s.stage for s in uniform.stages] == ["rollout", "update", "evaluate"]
    truth = planned(EIGHT, overrides=["rollout.source='truth'", "update.objective='sft'"])
    assert "rollout" not in {s.stage for s in truth.stages}


def test_shards_of_an_update_are_its_share() -> None:
    one, eight = (parts(planned(EIGHT, devices=n), "update") for n in (1, 8))
    for name in ("weights", "gradients", "optimiser's state"):
        assert eight[name] == pytest.approx(one[name] / 8)


# --- lengths and work --------------------------------------------------------------------------


def example(video: str, seconds: float, query: str) -> GroundingExample:
    return GroundingExample(
        f"{video} {query}", video, seconds, query, Span(0.0, 1.0), "test", "train", ()
    )


def lengths_of(config: Config, examples: list[GroundingExample]) -> lengths.Lengths:
    shape = planned(EIGHT).student.shape
    return lengths.Lengths(config, shape, Annotations.of(examples, words_of))


def test_lengths_follow_the_annotated_videos() -> None:
    config = load_config(EIGHT, ["video.max_frame_tokens=100", "rollout.max_queries_per_video=2"])
    told = lengths_of(
        config, [example("a", 10.0, "one two"), example("a", 10.0, "one two three four"),
                 example("a", 10.0, "x"), example("b", 1000.0, "one")],
    )  # fmt: skip
    # 20 frames are 10 pairs of 100 tokens; 768 frames would be 384 pairs, of which 8,192 are kept.
    assert (told.longest.vision, told.longest.frames) == (8192, 768)
    assert told.mean.vision == (10 * 100 + 8192) / 2
    assert told.sentences == 1.5
    assert told.annotations is not None and told.annotations.words == 2
    # `<5.0 seconds>` is six tokens, and two marks; two more are around the video.
    assert lengths_of(config, [example("a", 10.0, "x")]).longest.stamps == 10 * 8 + 2


def test_a_tree_counts_its_video_once() -> None:
    tree = packs.Tree(vision=80, shared=100, own=10, sentences=3, rollouts=2, answer=5)
    assert (tree.tokens, tree.answers, tree.separately) == (160, 30, 690)
    pairs = 100**2 / 2 + 3 * ((10 + 2 * 5) * 100 + 10**2 / 2 + 2 * 5 * (10 + 5 / 2))
    assert tree.scores == pairs


@pytest.mark.parametrize(
    ("most", "sentences", "rollouts", "trees"),
    [(1000, 3, 2, 5), (400, 3, 2, 2), (140, 2, 2, 1), (119, 1, 1, 1), (50, 1, 1, 1)],
)
def test_packs_hold_what_fits(most: int, sentences: int, rollouts: int, trees: int) -> None:
    tree = packs.Tree(vision=80, shared=100, own=10, sentences=3, rollouts=2, answer=5)
    pack = packs.packed(tree, 5, most)
    assert (pack.tree.sentences, pack.tree.rollouts, pack.trees) == (sentences, rollouts, trees)
    assert pack.tokens <= most or pack.tokens == 115


def test_the_flops_of_a_pass_are_two_a_weight_and_token() -> None:
    made = planned(EIGHT)
    score = next(s.work for s in made.stages if s.stage == "score")
    assert score is not None
    numbers = made.teacher.parameters
    least = 2 * numbers.layers * score.tokens
    assert least < score.flops < 1.35 * least
    assert made.stages[0].hours is not None and made.stages[0].hours > 0
    unknown = plan(load_config(EIGHT), Machine(card_of_device("Someone's chip", 80e9), None))
    assert unknown.stages[0].hours is None


# --- numbers that stand elsewhere too ----------------------------------------------------------


def test_numbers_are_those_of_the_modules_that_work_by_them() -> None:
    from opd_core.engines.hf.sampling import HFEngine
    from opd_core.model import tree_attention
    from opd_core.update import pieces
    from opd_core.video import reader

    prefill = inspect.signature(HFEngine).parameters["max_tokens_per_pack"].default
    assert prefill == memory.PREFILL_TOKENS
    assert pieces.PIECE == memory.STEPPED_TOGETHER
    assert reader.MAX_CACHE_BYTES == memory.CACHED_FRAMES
    assert tree_attention.DENSE_TREE_TOKENS == packs.DENSE_TREE_TOKENS
    assert tree_attention.BLOCK_TOKENS == packs.BLOCK_TOKENS


def test_cards_are_found_by_name() -> None:
    assert card("rtx4090") is CARDS["RTX 4090"]
    with pytest.raises(VideoOPDError, match="--gpu 'H10' is not known; did you mean 'H100'"):
        card("H10")
    there = card_of_device("NVIDIA H100 80GB HBM3", 85e9)
    assert (there.memory, there.flops) == (85e9, CARDS["H100"].flops)
    assert card_of_device("NVIDIA L40S", 48e9).flops == CARDS["L40S"].flops
    assert card_of_device("NVIDIA A100-SXM4-80GB", 85e9).bandwidth == CARDS["A100"].bandwidth


def test_memory_of_a_container_is_its_limit(tmp_path: Path) -> None:
    assert ram(tmp_path) > 1e9
    (tmp_path / "memory.max").write_text("max\n")
    whole = ram(tmp_path)
    (tmp_path / "memory.max").write_text("123456789\n")
    assert ram(tmp_path) == 123456789 < whole


def test_of_a_cluster_whose_head_has_no_card_nothing_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its workers may have cards, which are not compared with the memory of the head."""
    monkeypatch.setattr(plan_of_config, "present_card", lambda _: None)
    monkeypatch.setattr(plan_of_config, "is_cpu", lambda device: device != "cuda")

    def machine(*overrides: str) -> Machine | None:
        return plan_of_config.this_machine(load_config(EIGHT, overrides))

    there = ["cluster.workers=8", "cluster.address='auto'"]
    assert machine(*there) is None
    for here in (there[:1], [], [*there, "machine.device='cpu'"]):
        assert machine(*here) == Machine(None, ram(), 1)


def test_a_plan_is_json() -> None:
    from dataclasses import asdict

    assert json.loads(json.dumps(asdict(planned(EIGHT)), default=str))["mfu"] == 0.4


def test_what_many_cards_wait_for_is_counted() -> None:
    overrides = [
        "rollout.examples_per_round=6400", "focus.top_k=6400", "update.examples_per_step=128",
        "evaluate.max_examples=640", "video.fps=2.0", "video.max_frames=768",
    ]  # fmt: skip
    path = CONFIGS / "qwen3vl_8b_8cards.toml"
    lines = {line.what: line for line in planned(path, devices=64, overrides=overrides).beside}
    frames = (4 * 6400 + 640) * 384 * 30  # validate, rollout, score, update; evaluate
    kept = 20 * 2**30 / ((6400 + 640) * 8192 * 3072 * 2)
    seconds = frames / beside.DECODED / (64 * packets.MAX_DECODER_THREADS)
    assert (1 - kept) * seconds / 3600 < lines["decoding"].hours < seconds / 3600
    read = (2 * 66.7e9 + 3 * 17.5e9) * 8 / beside.READ / 3600  # two stages of 32B, three of 8B
    assert lines["loading weights"].hours == pytest.approx(read, rel=0.01)
    passes = 2 * 50  # two videos a card and step, a pass each; 50 steps
    moved = 8.77e9 * (passes * 2 * 2 + 50 * 4)
    exchange = lines["exchange of the update"]
    assert exchange.hours == pytest.approx(moved / beside.LINK / 3600, rel=0.01)
    assert exchange.counted == "50 steps, 100 passes of a card"
    assert lines["writing rows"].counted.startswith(f"{6400 * 5 + 640:,} answers")
    assert planned(path, devices=1, overrides=overrides).beside == ()


def test_cards_that_a_step_has_no_video_for_wait() -> None:
    path = CONFIGS / "qwen3vl_8b_8cards.toml"
    made = planned(path, devices=64)  # 32 examples a step
    (waiting,) = (line for line in made.beside if line.what == "waiting for the last")
    (update,) = (stage for stage in made.stages if stage.stage == "update")
    assert waiting.hours > known(update.hours)
