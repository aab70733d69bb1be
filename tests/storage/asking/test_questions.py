"""The notebook in docs is executed: its five questions have answers on a real run."""

from __future__ import annotations

import ast
import json
from typing import Any

import polars as pl
import pytest

from opd_core.tinyworld.world import World
from tests.storage.finished_run import finished_run
from tests.tiny_config import ROOT


@pytest.fixture(scope="module")
def answers(tiny_world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the notebook's names hold after its last cell; `shown`: what each cell displays."""
    finished = finished_run(tmp_path_factory.getbasetemp() / "finished", tiny_world.videos.parent)
    notebook = json.loads((ROOT / "docs" / "questions.ipynb").read_text())
    names: dict[str, Any] = {"shown": []}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VIDEOOPD_RUN", str(finished.run))
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code":
                tree = ast.parse("".join(cell["source"]))
                *body, last = tree.body
                exec(compile(ast.Module(body, []), "cell", "exec"), names)
                assert isinstance(last, ast.Expr), "each cell ends with what it shows"
                shown = eval(compile(ast.Expression(last.value), "cell", "eval"), names)
                names["shown"].append(shown)
    return names


def test_every_cell_shows_rows(answers: dict[str, Any]) -> None:
    assert len(answers["shown"]) == 9
    assert all(isinstance(frame, pl.DataFrame) and frame.height for frame in answers["shown"])


def test_the_five_answers(answers: dict[str, Any]) -> None:
    assert answers["wrong"]["teacher_iou"].is_sorted()
    assert answers["by_kind"]["tokens"].sum() == answers["by_position"]["tokens"].sum()
    assert answers["by_kind"]["tokens"].sum() == answers["scored"].height
    assert set(answers["by_round"]["policy_version"]) == {0, 1}
    gains = answers["by_round"].select(pl.col("after") - pl.col("before") - pl.col("gain"))
    assert gains.to_series().abs().max() == 0.0
    assert answers["picked"].filter(reason="selected")["rollouts"].sum() == 16
    assert answers["drift"]["policy_version"].to_list() == [0, 1, 2]
    assert answers["drift"]["policy_kl"].null_count() == 1  # the newest has no update yet


def test_the_notebook_is_kept_without_outputs() -> None:
    notebook = json.loads((ROOT / "docs" / "questions.ipynb").read_text())
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
