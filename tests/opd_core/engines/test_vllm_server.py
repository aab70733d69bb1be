"""A teacher behind the address of a real vLLM server, on the CPU in fp32: what it says is what the
trainer's own forward says, and where it is not, or cannot be proven, nothing is kept."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from opd_core.config.load import Config
from opd_core.engines.vllm_server.distribution import allowed
from opd_core.rollout.answers import predict, sample_rollouts
from opd_core.scoring.trees import describe_scorer, score_rollouts
from opd_core.tinyworld.world import World
from opd_core.types import GroundingExample, Policy, Rollout, TeacherScore, VideoOPDError
from tests.known import known
from tests.opd_core.engines.vllm_fixtures import NEEDS_VLLM, make_config, make_model, read_examples
from tests.vllm_server import SERVED_AS, Door, Served

pytestmark = [NEEDS_VLLM, pytest.mark.timeout(1200), pytest.mark.slow]

Work = list[tuple[GroundingExample, list[Rollout]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def address(served_teacher: Served) -> str:
    return served_teacher.address


@pytest.fixture(scope="module")
def config(folder: Path, tiny_world: World) -> Config:
    return make_config(folder, tiny_world, {"rollout.rollouts_per_example": 2})


@pytest.fixture(scope="module")
def work(config: Config) -> Work:
    """Two rollouts of each of some sentences, on two videos."""
    examples = read_examples(config, 5)
    assert len({example.video_path for example in examples}) == 2
    batches = sample_rollouts(config, Policy(0, config.student.path, "p"), examples, set())
    rows = [row for batch in batches for row in batch.records]
    return [(e, [r for r in rows if r.example_id == e.example_id]) for e in examples]


def behind(config: Config, address: str, **more: Any) -> Config:
    content = config.model_dump()
    content["teacher"]["engine"] = "vllm_server"
    content["vllm_server"] = {"address": address, "listed": 1000, **more}
    return Config.model_validate(content)


def scores(config: Config, work: Work) -> dict[str, TeacherScore]:
    teacher = Policy(0, config.teacher.path, "t")
    batches = list(score_rollouts(config, teacher, work))
    assert not [lost for batch in batches for lost in batch.quarantined]
    return {row.rollout_id: row for batch in batches for row in batch.records}


def test_its_scores_are_those_of_the_trainers_forward(
    config: Config, work: Work, address: str
) -> None:
    ours, theirs = scores(config, work), scores(behind(config, address), work)
    assert ours.keys() == theirs.keys() and len(ours) == 10
    for key, mine in ours.items():
        other = theirs[key]
        assert other.teacher_logprobs == pytest.approx(mine.teacher_logprobs, abs=1e-4)
        assert np.allclose(known(other.topk_logprobs), known(mine.topk_logprobs), atol=1e-4)
        assert np.allclose(known(other.tail_logprobs), known(mine.tail_logprobs), atol=1e-3)
        assert f"remote {SERVED_AS}" in other.scorer
        assert "compared with its weights" in other.scorer


def test_its_answers_pass_the_gate(config: Config, work: Work, address: str) -> None:
    remote = behind(config, address)
    teacher = Policy(0, config.teacher.path, "t")
    examples = [example for example, _ in work]
    rows = [r for b in predict(remote, teacher, "q", examples, set()) for r in b.records]
    assert len(rows) == len(examples) * config.teacher.predictions


def test_another_models_weights_are_refused(
    config: Config, work: Work, address: str, folder: Path
) -> None:
    other = make_model(folder / "other", "teacher", 2)
    remote = behind(config, address)
    remote = remote.model_copy(
        update={"teacher": remote.teacher.model_copy(update={"path": other})}
    )
    with pytest.raises(VideoOPDError, match=r"does not score as the weights in .*other do"):
        scores(remote, work)
    asked = [example for example, _ in work]
    with pytest.raises(VideoOPDError, match=r"does not score as the weights in .*other do"):
        list(predict(remote, Policy(0, other, "t"), "q", asked, set()))


def test_another_processor_is_refused(
    config: Config, work: Work, address: str, folder: Path
) -> None:
    """Ours has other means than the server's, as if somebody had edited the files of one."""
    other = Path(shutil.copytree(config.teacher.path, folder / "edited"))
    file = other / "processor_config.json"
    content = json.loads(file.read_text())
    content["video_processor"]["image_mean"] = [0.4, 0.4, 0.4]
    file.write_text(json.dumps(content))
    remote = behind(config, address, compare=False)
    remote = remote.model_copy(
        update={"teacher": remote.teacher.model_copy(update={"path": other})}
    )
    with pytest.raises(VideoOPDError, match="on another prompt than ours .*normalises a pixel"):
        scores(remote, work)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"model": "another"}, f"serves no 'another' but {SERVED_AS}"),
        ({"listed": 1}, "would take none .*nobody may say.*raise vllm_server.listed"),
    ],
)
def test_what_it_cannot_give_is_a_sentence(
    config: Config, work: Work, address: str, more: dict[str, Any], message: str
) -> None:
    plain = behind(config, address, **more)
    plain = plain.model_copy(update={"score": plain.score.model_copy(update={"teacher_topk": 0})})
    with pytest.raises(VideoOPDError, match=message):
        scores(plain, work)


def test_a_server_that_is_not_there_is_a_sentence(config: Config, work: Work) -> None:
    door = Door("http://127.0.0.1:1")
    door.close()
    with pytest.raises(VideoOPDError, match="does not answer .*goes on where it was"):
        scores(behind(config, door.address), work)


def test_one_that_dies_midway_leaves_what_it_has_scored(
    config: Config, work: Work, address: str
) -> None:
    """A batch is kept whole; here one is a video."""
    config = config.model_copy(
        update={"score": config.score.model_copy(update={"prompts_per_batch": 1})}
    )
    first = work[0][0].video_path
    alone = [pair for pair in work if pair[0].video_path == first]
    door = Door(address, lets_through=sum(len(answers) for _, answers in alone))
    teacher = Policy(0, config.teacher.path, "t")
    kept: list[TeacherScore] = []
    with pytest.raises(VideoOPDError, match="does not answer .*goes on where it was"):
        for batch in score_rollouts(behind(config, door.address, together=1), teacher, work):
            kept += batch.records
    door.close()
    assert {row.rollout_id for row in kept} == {r.rollout_id for _, rows in alone for r in rows}


def test_its_scorer_names_it(config: Config, address: str) -> None:
    text = describe_scorer(behind(config, address), "hash")
    assert text.startswith("vllm_server, vllm 0.") and f"remote {SERVED_AS}" in text


def test_what_nobody_may_say_is_taken_out_exactly() -> None:
    logits = np.array([2.0, 1.0, 0.5, 3.0, -1.0])
    whole = logits - np.log(np.exp(logits).sum())
    listed = allowed(dict(enumerate(whole)), range(5), {3}, 5)
    expected = logits[[0, 1, 2, 4]] - np.log(np.exp(logits[[0, 1, 2, 4]]).sum())
    assert list(listed.logprobs) == [0, 1, 2, 4] and listed.off_by == 0.0
    assert list(listed.logprobs.values()) == pytest.approx(expected)


def test_what_is_left_is_exact_where_nearly_all_is_taken_out() -> None:
    logits = np.array([-40.0, -41.0, 30.0])
    whole = logits - np.logaddexp.reduce(logits)
    listed = allowed(dict(enumerate(whole)), range(3), {2}, 3)
    assert listed.logprobs[0] == pytest.approx(-np.log1p(np.exp(-1.0))) and listed.off_by == 0.0


def test_what_is_not_listed_of_it_is_bounded() -> None:
    logits = np.array([6.0, 5.0, 0.0, -1.0, -2.0])
    whole = logits - np.log(np.exp(logits).sum())
    listed = allowed({0: whole[0], 1: whole[1], 2: whole[2]}, [0, 1, 2], {4}, 5)
    truth = logits[0] - np.log(np.exp(logits[:4]).sum())
    assert 0.0 <= truth - listed.logprobs[0] <= listed.off_by <= np.exp(whole[2]) * 1.01
