"""The links of the chain from a checkpoint back to its inputs that the store itself can prove.

A link is a function of a run: it counts what it has checked, or raises `BrokenLink` at the first
thing that is not as it must be, naming row or file and both values. What needs the algorithm
(selections, answers, videos) is in `flows/audit/walk.py`, which runs them all.

Nothing is taken from the run's caches: weights are hashed again.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from opd_core.hub.name import cached_model
from opd_core.types import Span, make_example_id, make_rollout_id, split_hashes
from storage.runs import marks, policies, run_folder
from storage.tables import history
from storage.tables.schemas import TABLES

if TYPE_CHECKING:
    import polars as pl

    from storage.runs.run import Run

_Rows: TypeAlias = tuple[dict[str, Any], ...]
PROBABILITY_TOLERANCE = 1e-3
"""Of the teacher's top-k and tail together, which are probability 1."""
LOGPROB_TOLERANCE = 1e-4
"""Between a token's log-prob and the same token's among the top-k (exact where HF scored)."""


class BrokenLink(Exception):
    """What is broken, in a sentence."""

    @classmethod
    def at(cls, where: str, what: str, found: Any, expected: Any) -> BrokenLink:
        return cls(f"{where}: {what} is {found!r} and should be {expected!r}")


@dataclass(frozen=True, slots=True)
class Checked:
    count: int
    of: str
    """What was counted: `checkpoints`, `rollouts`."""
    notes: tuple[str, ...] = field(default=())
    """What is in order and worth knowing."""
    let_go: tuple[str, ...] = field(default=())
    """What can be neither proven nor refuted, because it was let go on purpose: what, and why."""


def rounds(run: Run) -> _Rows:
    """The committed rounds in force, in order: the rows of `updates`, which all links ask for."""
    return _rounds(
        run,
        run.tables.version("updates", run.table_version("updates")),
        run.tables.version("reruns", run.table_version("reruns")),
    )


@lru_cache(maxsize=1)
def _rounds(run: Run, updates: int, reruns: int) -> _Rows:
    """Read once for the versions of the tables that they follow from."""
    return tuple(run.updates().sort("policy_version").collect().to_dicts())


def settled(run: Run) -> _Rows:
    """Rounds whose update was not computed from superseded rows (`takes.py` has the rest)."""
    stale = {s.policy_version for s in run.takes().stale() if s.stage == "update"}
    return tuple(row for row in rounds(run) if row["parent_version"] not in stale)


def base_path(run: Run) -> Path:
    return Path(run_folder.read(run.path)["student"]["path"])


def policy_hashes(run: Run) -> dict[int, str]:
    """policy_version -> hash of the weights, as committed."""
    began = {0: str(run_folder.read(run.path)["student"]["weights_hash"])}
    return began | {u["policy_version"]: u["policy_hash"] for u in rounds(run)}


def weights(run: Run) -> Checked:
    """Every checkpoint holds the weights that its manifest and its row in `updates` name; of those
    that were let go, manifest and row name the same."""
    base = base_path(run)
    now = policies.weights_hash(base)
    if now != policy_hashes(run)[0]:
        raise BrokenLink.at(f"student {base}", "the weights' hash", now, policy_hashes(run)[0])
    let_go = []
    for row in rounds(run):
        folder = run.path / row["checkpoint"]
        manifest = policies.read_manifest(folder)
        for name, value in {
            "policy_version": row["policy_version"],
            "parent_version": row["parent_version"],
            "parent_hash": row["parent_hash"],
            "weights_hash": row["policy_hash"],
            "run_id": run.run_id,
        }.items():
            if manifest.get(name) != value:
                where = f"{folder / policies.MANIFEST_FILE}"
                raise BrokenLink.at(where, name, manifest.get(name), value)
        if (gone := marks.let_go_in(manifest)) is not None:
            let_go.append(f"the weights of policy {row['policy_version']} were {gone.told()}")
            continue
        now = policies.weights_hash(folder, base)
        if now != row["policy_hash"]:
            raise BrokenLink.at(f"{folder}", "the weights' hash", now, row["policy_hash"])
    notes = ["policy {} is {}".format(*max(policy_hashes(run).items()))]
    if (named := cached_model(base)) is not None:
        notes.append(f"policy 0 is {named}")
    count = 1 + len(rounds(run)) - len(let_go)
    return Checked(count, "checkpoints", tuple(notes), tuple(let_go))


def chain(run: Run) -> Checked:
    """Each policy names its parent, by version and hash, back to the base student."""
    hashes = policy_hashes(run)
    for expected, row in enumerate(rounds(run), start=1):
        where = f"updates, policy_version {row['policy_version']}"
        if row["policy_version"] != expected:
            raise BrokenLink.at(where, "the next policy_version", row["policy_version"], expected)
        if row["parent_version"] != expected - 1:
            raise BrokenLink.at(where, "parent_version", row["parent_version"], expected - 1)
        if row["parent_hash"] != hashes[expected - 1]:
            raise BrokenLink.at(where, "parent_hash", row["parent_hash"], hashes[expected - 1])
    return Checked(len(rounds(run)), "updates")


def rollouts(run: Run) -> Checked:
    """Every rollout was sampled by exactly its policy's weights, for an example of its draw; one of
    another source (baselines), by policy 0's or the teacher's."""
    import polars as pl

    unique(run, "rollouts")
    hashes = policy_hashes(run)
    teachers = {u["parent_version"]: u["teacher_hash"] for u in rounds(run)}
    frame = run.rollouts().select(
        "rollout_id", "policy_version", "policy_hash", "answered_by", "example_id", "sample_index"
    )
    rows = frame.collect()
    for rollout_id, version, policy_hash, source, example_id, index in rows.iter_rows():
        where = f"rollouts, {rollout_id}"
        if version not in hashes:
            raise BrokenLink.at(where, "policy_version", version, f"at most {max(hashes)}")
        teacher = teachers.get(version, run.teacher_hash)
        expected = {
            "student": hashes[version],
            "base": hashes[0],
            "teacher": policy_hash if policy_hash in split_hashes(teacher) else teacher,
            "truth": "truth",
        }.get(source)
        if policy_hash != expected:
            raise BrokenLink.at(where, "policy_hash", policy_hash, expected)
        if rollout_id != (made := make_rollout_id(version, example_id, index)):
            raise BrokenLink.at(where, "rollout_id", rollout_id, made)
    drawn = run.draws().select("policy_version", "example_id").collect()
    stray = rows.join(drawn, on=["policy_version", "example_id"], how="anti").sort("rollout_id")
    if stray.height:
        row = stray.row(0, named=True)
        raise BrokenLink(
            f"rollouts, {row['rollout_id']}: "
            f"round {row['policy_version'] + 1} never drew its example"
        )
    other = run.evaluations().select("policy_version", "policy_hash", "example_id").collect()
    for version, policy_hash, example_id in other.iter_rows():
        if policy_hash != hashes.get(version):
            where = f"evaluations, {example_id} by policy {version}"
            raise BrokenLink.at(where, "policy_hash", policy_hash, hashes.get(version))
    trained = run.trajectories().filter(pl.col("trained")).select(pl.len()).collect().item()
    notes = [f"{trained:,} of them trained on"]
    foreign = rows.filter(pl.col("answered_by") != "student").group_by("answered_by").len()
    notes += [f"{n:,} are answers of the {name}" for name, n in foreign.sort("answered_by").rows()]
    return Checked(rows.height, "rollouts", tuple(notes))


def scores(run: Run) -> Checked:
    """Selected rollouts have one score, by the update's teacher, that is a distribution."""
    import polars as pl

    unique(run, "teacher_scores")
    count = 0
    for row in settled(run):
        version, teacher = row["parent_version"], row["teacher_hash"]
        this = pl.col("policy_version") == version
        answers = run.rollouts().filter(this).select(
            "rollout_id", "completion_token_ids", tokens=pl.col("completion_token_ids").list.len()
        )  # fmt: skip
        scores = (
            run.teacher_scores()
            .filter(this & pl.col("teacher_hash").is_in(split_hashes(teacher)))
            .select("rollout_id", "teacher_logprobs", "topk_token_ids", "topk_logprobs",
                    "tail_logprobs")
            .join(answers, on="rollout_id", how="left", maintain_order="left")
            .collect()
        )  # fmt: skip
        selected = run.selections().filter(this & pl.col("selected")).select("rollout_id").collect()
        missing = selected.join(scores, on="rollout_id", how="anti")["rollout_id"].to_list()
        if missing and row["uses_scores"]:
            where = f"teacher_scores, {min(missing)}"
            raise BrokenLink(f"{where}: it was trained on and has no score by teacher {teacher}")
        _lengths(scores)
        _distributions(scores)
        count += scores.height
    return Checked(count, "scores", tuple(_copies(run)))


def examples(run: Run) -> Checked:
    """An example's id is the hash of its video's path, sentence and spans."""
    unique(run, "examples")
    columns = ("example_id", "video_path", "query", "span_start", "span_end", "other_spans")
    rows = run.examples().select(columns).collect()
    for example_id, path, query, start, end, others in rows.iter_rows():
        spans = (Span(start, end), *(Span(*other) for other in others))
        if example_id != (made := make_example_id(path, query, *spans)):
            where = f"examples, {example_id}"
            raise BrokenLink.at(where, "the hash of its annotation", made, example_id)
    return Checked(rows.height, "examples")


def appended(run: Run) -> Checked:
    """Tables were made once and only appended to, by this run; a finished round keeps its tags."""
    count = cleaned = 0
    folder = run.tables.folder
    last = max(policy_hashes(run))
    newest = last if run.is_finished(last) else last - 1
    expected = [run.round_tag(number) for number in range(1, newest + 1)]
    for name in run.tables.names:
        commits = list(history.commits(folder, name))
        cleaned += commits[-1].version - len(commits)
        for commit in commits:
            where = f"{name}.lance, version {commit.version}"
            if commit.version == 1 and commit.operation == history.MADE:
                if began := history.rows_at(folder, name, 1):
                    raise BrokenLink.at(where, "the number of rows it was made with", began, 0)
                continue
            if commit.operation in history.MIGRATED and history.only_absent_columns(
                folder, name, commit.version
            ):
                continue
            if commit.operation not in history.GROWN:
                raise BrokenLink.at(where, "the operation", commit.operation, "Append")
            owner = commit.properties.get("run_id")
            if commit.operation == "Append" and owner != run.run_id:
                raise BrokenLink.at(where, "the run that appended", owner, run.run_id)
        count += len(commits)
        tags = history.tags(folder, name)
        for tag in expected:
            if tag not in tags:
                raise BrokenLink(f"{name}.lance: the tag {tag} is missing")
    notes = (f"{cleaned:,} older ones without a tag were cleaned up",) if cleaned else ()
    return Checked(count, "table versions", notes)


def attempts(run: Run) -> Checked:
    """Every row is of a committed round or of the one in progress; leftovers are named."""
    import polars as pl

    current = max(policy_hashes(run))
    seen: set[str] = set()
    notes: list[str] = []
    for name in run.tables.names:
        spec = TABLES[name]
        of_round = "policy_version" in {column.name for column in spec.columns}
        shown = run.in_force(name)
        rows = (
            run.scan(name, superseded=True)
            .group_by(
                "run_id", "attempt", *(["policy_version"] if of_round else []),
                shown=pl.lit(True) if shown is None else shown, maintain_order=True,
            )
            .agg(n=pl.len(), key=pl.struct(spec.key).first())
            .collect()
        )  # fmt: skip
        for row in rows.filter(pl.col("run_id") != run.run_id).head(1).iter_rows(named=True):
            where = f"{name}, {tuple(row['key'].values())}"
            raise BrokenLink.at(where, "run_id", row["run_id"], run.run_id)
        if name not in ("updates", "reruns") and of_round:
            counts = (
                rows.filter("shown").group_by("policy_version")
                .agg(pl.col("n").sum(), attempts=pl.col("attempt").n_unique())
                .sort("policy_version").rows()
            )  # fmt: skip
            last = counts[-1][0] if counts else None
            if last is not None and last > current:
                raise BrokenLink(f"{name}: it has rows of policy {last}, which nothing committed")
            if last == current and name != "evaluations":
                notes.append(f"in progress, round {current + 1}: {counts[-1][1]:,} rows of {name}")
            notes += [f"{name} of policy {v} took {n} attempts" for v, _, n in counts if n > 1]
        seen |= set(rows["attempt"])
        if orphans := history.orphans(run.tables.folder, name):
            notes.append(f"{name}: {len(orphans)} data files of a killed write, in no version")
    return Checked(len(seen), "attempts", tuple(notes + _leftovers(run, current)))


def unique(run: Run, name: str) -> None:
    """Raises `BrokenLink` when a key of the table has two rows of one take."""
    import polars as pl

    key = [*TABLES[name].key, "take"]
    rows = run.scan(name, superseded=True).group_by(key).len()
    for row in rows.filter(pl.col("len") > 1).sort(key).head(1).collect().iter_rows():
        raise BrokenLink.at(f"{name}, {row[:-2]}", "the number of its rows", row[-1], 1)


def _leftovers(run: Run, current: int) -> list[str]:
    rows = run.scan("updates", superseded=True).select("checkpoint").collect().to_series()
    committed = {(run.path / checkpoint).resolve() for checkpoint in rows}
    notes = []
    for folder in sorted((run.path / "policies").iterdir()):
        if folder.name.startswith("."):
            notes.append(f"policies/{folder.name}: left by a killed update")
        elif run.round is None and folder.resolve() not in committed:
            match = re.fullmatch(r"v(\d+)(?:\.take(\d+))?", folder.name)
            version, take = (int(match[1]), int(match[2] or 0)) if match else (0, 0)
            newest = run.takes().take("update", version - 1)
            if version == current + 1 and take == newest:
                notes.append(f"policies/{folder.name}: published, not committed yet")
            elif take < newest:
                notes.append(f"policies/{folder.name}: left by an update that was begun again")
            else:
                raise BrokenLink(f"{folder}: no row of updates names this checkpoint")
    return notes


def _lengths(scores: pl.DataFrame) -> None:
    import polars as pl

    length = pl.col("teacher_logprobs").list.len()
    wrong = scores.filter((length != pl.col("tokens")).fill_null(True)).sort("rollout_id")
    if wrong.height:
        row = wrong.row(0, named=True)
        where = f"teacher_scores, {row['rollout_id']}"
        number = len(row["teacher_logprobs"])
        raise BrokenLink.at(where, "the number of its log-probs", number, row["tokens"])


def _copies(run: Run) -> list[str]:
    """Every score that was copied within the run is the one of the row that it names."""
    import polars as pl

    rows = run.teacher_scores().select(
        "rollout_id", "teacher_hash", "content_hash", "teacher_logprobs", "reused_from"
    )
    copied = rows.filter(pl.col("reused_from").is_not_null())
    mine = copied.with_columns(
        origin=pl.col("reused_from").str.strip_prefix(f"{run.run_id}/")
    ).filter(pl.col("origin") != pl.col("reused_from"))
    # A score may have been computed again since it was copied: any take of it will do.
    origins = run.scan("teacher_scores", superseded=True).filter(pl.col("reused_from").is_null())
    origins = origins.select("rollout_id", "teacher_hash", "content_hash", "teacher_logprobs")
    both = mine.join(
        origins, left_on=["origin", "teacher_hash"], right_on=["rollout_id", "teacher_hash"],
        how="left", suffix="_of_origin",
    ).sort("rollout_id").collect()  # fmt: skip
    compared = ("content_hash", "teacher_logprobs")
    true = {r["rollout_id"] for r in both.iter_rows(named=True)
            if all(r[c] == r[f"{c}_of_origin"] for c in compared)}  # fmt: skip
    for row in both.iter_rows(named=True):
        if row["rollout_id"] in true:
            continue
        where = f"teacher_scores, {row['rollout_id']}"
        if row["content_hash_of_origin"] is None:
            raise BrokenLink(f"{where}: there is no computed score {row['origin']} to copy from")
        for name in compared:
            if row[name] != row[f"{name}_of_origin"]:
                expected = f"{row[f'{name}_of_origin']} of {row['origin']}"
                raise BrokenLink.at(where, name, row[name], expected)
    foreign = copied.select(pl.len()).collect().item() - len(true)
    notes = [f"{len(true):,} are copies of others in this run"] if true else []
    return notes + ([f"{foreign:,} are copies from other runs"] if foreign else [])


def _distributions(scores: pl.DataFrame) -> None:
    """Check kept top-k: they and the tail sum to 1, and a sampled token among them agrees."""
    import polars as pl

    with_topk = scores.filter(pl.col("topk_token_ids").is_not_null() & (pl.col("tokens") > 0))
    if with_topk.is_empty():
        return
    positions = with_topk.with_columns(position=pl.int_ranges("tokens")).explode(
        "position", "teacher_logprobs", "topk_token_ids", "topk_logprobs", "tail_logprobs",
        "completion_token_ids",
    )  # fmt: skip
    mass = positions.with_columns(
        mass=pl.col("topk_logprobs").list.eval(pl.element().exp()).list.sum()
        + pl.col("tail_logprobs").exp()
    )
    for row in mass.filter((pl.col("mass") - 1).abs() > PROBABILITY_TOLERANCE).iter_rows(
        named=True
    ):
        where = f"teacher_scores, {row['rollout_id']}, token {row['position']}"
        raise BrokenLink.at(where, "the probability of top-k and tail", round(row["mass"], 6), 1.0)
    same = positions.explode("topk_token_ids", "topk_logprobs").filter(
        (pl.col("topk_token_ids") == pl.col("completion_token_ids"))
        & ((pl.col("topk_logprobs") - pl.col("teacher_logprobs")).abs() > LOGPROB_TOLERANCE)
    )
    for row in same.iter_rows(named=True):
        where = f"teacher_scores, {row['rollout_id']}, token {row['position']}"
        raise BrokenLink.at(where, "its log-prob", row["teacher_logprobs"], row["topk_logprobs"])
