"""What the rows of a round name: their config, selected rollouts and examples."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

import polars as pl

from opd_core.config.load import Config, config_hash
from opd_core.rollout.by_example import by_example
from opd_core.types import Draw, GroundingExample, Rollout
from storage.audit.links import BrokenLink

if TYPE_CHECKING:
    from storage.runs.run import Run


def config_of(run: Run, digest: str) -> Config:
    """The config that rows name. Raises `BrokenLink` when it is not there or has been edited."""
    from pydantic import ValidationError

    file = run.path / "configs" / f"{digest}.json"
    try:
        text = file.read_text()
        config = Config.model_validate_json(text)
    except OSError:
        raise BrokenLink(f"{file}: it is missing, and rows name it") from None
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            raise BrokenLink(
                f"{file}: no package that is installed here takes {where}; install the one it is of"
            ) from None
        raise BrokenLink(f"{file}: {where or 'it'} cannot be read ({problem['msg']})") from None
    if (now := config_hash(json.loads(text))) != digest:
        raise BrokenLink.at(str(file), "its hash", now, digest)
    return config.model_copy(update={"cluster": None})  # what is audited is computed again here


def config_hash_of(run: Run, table: str, version: int) -> str:
    """Hash of the config that a round's rows in a table were written with, the last of them."""
    frame = run.scan(table).filter(pl.col("policy_version") == version)
    hashes = frame.sort("written_at").select("config_hash").collect().to_series()
    if hashes.is_empty():
        raise BrokenLink(f"{table}: it has no rows of policy {version}, whose round is committed")
    return str(hashes[-1])


def selected_of(run: Run, version: int) -> list[Rollout]:
    this = pl.col("policy_version") == version
    taken = run.selections().filter(this & pl.col("selected")).select("rollout_id").collect()
    ids = set(taken["rollout_id"])
    rollouts = [r for r in run.read("rollouts", Rollout, this) if r.rollout_id in ids]
    if lost := ids - {r.rollout_id for r in rollouts}:
        raise BrokenLink(f"selections, {min(lost)}: it was selected, and there is no such rollout")
    return rollouts


def examples_of(run: Run, version: int, wanted: set[str]) -> list[GroundingExample]:
    """Examples of the round's draw that are wanted, in the order of the draw."""
    draws = run.read("draws", Draw, pl.col("policy_version") == version)
    mine = pl.col("example_id").is_in([d.example_id for d in draws])
    examples = {e.example_id: e for e in run.last_known_examples(mine)}
    order = [d.example_id for d in sorted(draws, key=lambda d: d.position)]
    return [examples[e] for e in order if e in wanted and e in examples]


def grouped(
    run: Run, version: int, rows: list[Rollout], asked: Iterable[str] = ()
) -> list[tuple[GroundingExample, list[Rollout]]]:
    """Each example of the round with its rollouts, in order; `asked` are in it even without any."""
    mine: dict[str, list[Rollout]] = {example: [] for example in asked} | by_example(rows)
    return [(e, mine[e.example_id]) for e in examples_of(run, version, set(mine))]
