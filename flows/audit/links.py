"""The links of the chain that need the algorithm and nothing but stored rows: configs, scores,
rollouts and answers; `steps.py` and `selections.py` have the longer two.

Each is a function of a run that counts what it has checked, or raises `BrokenLink`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import polars as pl

from flows.audit.named import config_of, teachers_of
from flows.teachers import Teachers
from opd_core.config.load import Config
from opd_core.extensions import ENGINES, PromptTemplate
from opd_core.hub.name import cached_model
from opd_core.scoring.score_key import content_hash
from opd_core.spans.grounding import answer_iou
from opd_core.spans.protocols.known import PROTOCOLS, judgement
from opd_core.templates.own_prompt import template_of
from opd_core.types import GroundingExample, Rollout, Span, make_seed
from storage.audit import links as store
from storage.audit.links import BrokenLink, Checked

if TYPE_CHECKING:
    from storage.runs.run import Run

Compared = tuple[str, float | None, float | None]
"""What it is called, what is stored, what it should be."""
IOU_TOLERANCE = 1e-9
"""Of means that may be summed in another order."""


def configs(run: Run) -> Checked:
    """Every config that a row names is there and is what its name says."""
    from storage.tables.schemas import TABLES

    named: set[str] = set()
    for name in TABLES:
        rows = run.scan(name, superseded=True).select(pl.col("config_hash").unique())
        named |= set(rows.collect().to_series())
    for digest in sorted(named):
        config_of(run, digest)
    return Checked(len(named), "configs")


def scores(run: Run) -> Checked:
    """The store's checks, and: the update's teacher is the one that its config names; each score is
    of the content that its rollout has."""
    checked = store.scores(run)
    notes = list(checked.notes)
    _contents(run)
    hashes: dict[str, str] = {}
    for row in store.settled(run):
        where = f"updates, policy_version {row['policy_version']}"
        teachers = teachers_of(run, config_of(run, row["config_hash"]), row)
        for teacher in teachers:
            folder = teacher.config.teacher.path
            if str(folder) not in hashes:
                if teacher.weights_hash == identity_of(teacher.config):
                    notes.append(
                        f"{teacher.weights_hash} is elsewhere, its weights were never here"
                    )
                    hashes[str(folder)] = teacher.weights_hash
                elif not folder.is_dir():
                    notes.append(
                        f"the teacher's folder {folder} is not here, its weights were not read"
                    )
                    hashes[str(folder)] = teacher.weights_hash
                else:
                    from storage.runs.policies import weights_hash

                    if (named := cached_model(folder)) is not None:
                        notes.append(f"the teacher is {named}")
                    hashes[str(folder)] = weights_hash(folder)
            if hashes[str(folder)] != teacher.weights_hash:
                expected = f"{hashes[str(folder)]} ({folder})"
                raise BrokenLink.at(where, "teacher_hash", teacher.weights_hash, expected)
        _by_own_teacher(run, row["parent_version"], teachers)
    return Checked(checked.count, checked.of, tuple(dict.fromkeys(notes)))


def _by_own_teacher(run: Run, version: int, teachers: Teachers) -> None:
    """Of several, an answer is scored by the one that takes its example, and given by it where the
    teacher answers."""
    this = pl.col("policy_version") == version
    ours = pl.col("teacher_hash").is_in([teacher.weights_hash for teacher in teachers])
    strays = run.teacher_scores().filter(this & ours & ~teachers.scores())
    for rollout_id, digest in strays.select("rollout_id", "teacher_hash").collect().iter_rows():
        own = teachers.hash_of(rollout_id.split("-")[1])
        raise BrokenLink.at(f"teacher_scores, {rollout_id}", "teacher_hash", digest, own)
    given = run.rollouts().filter(this & (pl.col("answered_by") == "teacher"))
    rows = given.select("rollout_id", "example_id", "policy_hash").collect()
    for rollout_id, example_id, digest in rows.iter_rows():
        if digest != (own := teachers.hash_of(example_id)):
            raise BrokenLink.at(f"rollouts, {rollout_id}", "policy_hash", digest, own)


def identity_of(config: Config) -> str | None:
    """What stands for the hash of a teacher that is elsewhere, by the config."""
    identity = ENGINES[config.teacher.engine].identity
    return None if identity is None else identity(config)


def _contents(run: Run) -> None:
    columns = ("policy_version", "rollout_id", "teacher_hash", "scorer", "content_hash")
    scores = run.teacher_scores().select(columns).collect()
    for (version,), rows in scores.group_by("policy_version"):
        this = pl.col("policy_version") == version
        answers = {r.rollout_id: r for r in run.read("rollouts", Rollout, this)}
        for _, rollout_id, teacher, scorer, digest in rows.sort("rollout_id").iter_rows():
            where = f"teacher_scores, {rollout_id}"
            if rollout_id not in answers:
                raise BrokenLink(f"{where}: there is no such rollout")
            if digest != (made := content_hash(scorer, teacher, answers[rollout_id])):
                raise BrokenLink.at(where, "content_hash", digest, made)


def rollouts(run: Run) -> Checked:
    """The store's checks, and: seeds are those of the run's seed, round, example and index."""
    checked = store.rollouts(run)
    columns = ("rollout_id", "policy_version", "example_id", "sample_index", "seed", "config_hash")
    seeds: dict[str, int] = {}
    for name, version, example, index, seed, digest in (
        run.rollouts().select(columns).collect().iter_rows()
    ):
        if digest not in seeds:
            seeds[digest] = config_of(run, digest).run.seed
        expected = make_seed(seeds[digest], "rollout", version, example, index)
        if seed != expected:
            raise BrokenLink.at(f"rollouts, {name}", "seed", seed, expected)
    return checked


def answers(run: Run) -> Checked:
    """Every predicted span is what its text says, every IoU what the two spans give.

    Answers that a program of an older format read by other rules are counted: their spans stand.
    So are those judged by a protocol of a package that is not installed here.
    """
    older = run.older_rows_end()
    read_otherwise = 0
    truth = {e.example_id: e.spans for e in run.read("examples", GroundingExample)}
    asked: dict[str, PromptTemplate] = {}
    unknown: Counter[str] = Counter()
    count = 0
    for table, key, iou in (
        ("rollouts", ("rollout_id",), "student_iou"),
        ("teacher_predictions", ("example_id", "prediction_index"), "iou"),
        ("evaluations", ("example_id", "policy_version"), "iou"),
        ("model_evaluations", ("example_id", "model_hash"), "iou"),
    ):
        columns = [*key, "text", "predicted_start", "predicted_end", iou, "config_hash"]
        columns += ["written_at"]
        columns += ["example_id"] if table == "rollouts" else []
        evaluated = table in ("evaluations", "model_evaluations")
        columns += _OF_PROTOCOLS if evaluated else []
        for row in run.scan(table).select(columns).collect().iter_rows(named=True):
            where = f"{table}, {', '.join(str(row[name]) for name in key)}"
            start, end = row["predicted_start"], row["predicted_end"]
            span = None if start is None or end is None else Span(start, end)
            digest = row["config_hash"]
            if digest not in asked:
                asked[digest] = template_of(config_of(run, digest).prompt)
            said = asked[digest].parse_span(row["text"])
            if span != said and older is not None and row["written_at"] < older:
                read_otherwise += 1
            elif span != said:
                raise BrokenLink.at(where, "the predicted span", span, said)
            if row["example_id"] not in truth:
                raise BrokenLink(f"{where}: there is no example {row['example_id']}")
            windows = truth[row["example_id"]]
            compared: list[Compared] = [(iou, row[iou], answer_iou(span, *windows))]
            if evaluated:
                compared += _by_protocols(row, span, windows)
                judges = (stored["protocol"] for stored in _foreign(row))
                unknown.update(name for name in judges if name not in PROTOCOLS)
            for name, stored, value in compared:
                if not _same(stored, value):
                    raise BrokenLink.at(where, name, stored, value)
            count += 1
    notes = [f"{n:,} were judged by {name}, which is not installed here"
             for name, n in sorted(unknown.items())]  # fmt: skip
    if read_otherwise:
        notes.append(f"{read_otherwise:,} that a program of an older format read by other rules")
    return Checked(count, "answers", tuple(notes))


_OF_PROTOCOLS = ["timelens_start", "timelens_end", "timelens_iou", "judgements"]


def _foreign(row: dict[str, Any]) -> list[dict[str, Any]]:
    """What protocols without columns of their own made of the answer."""
    return row["judgements"] or []


def _by_protocols(
    row: dict[str, Any], span: Span | None, truth: Sequence[Span]
) -> Iterator[Compared]:
    """Compare all that each protocol made of an answer; nothing where it was not kept yet, or where
    the protocol is not installed."""
    timelens = {end: row[f"timelens_{end}"] for end in ("start", "end", "iou")}
    others = ((stored["protocol"], stored) for stored in _foreign(row))
    for name, values in (("timelens", timelens), *others):
        if name in PROTOCOLS and values["iou"] is not None:
            again = judgement(name, row["text"], span, truth)
            for end in ("start", "end", "iou"):
                yield f"{name}_{end}", values[end], getattr(again, end)


def _same(stored: float | None, value: float | None) -> bool:
    if stored is None or value is None:
        return stored is value
    return abs(stored - value) <= IOU_TOLERANCE
