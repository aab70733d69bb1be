"""The links of the chain that need the algorithm and nothing but stored rows.

Each is a function of a run that counts what it has checked, or raises `BrokenLink`.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import polars as pl

from opd_core.config.load import Config, config_hash
from opd_core.extensions import PromptTemplate
from opd_core.focus import select as curriculum
from opd_core.scoring.score_key import content_hash
from opd_core.spans.grounding import answer_iou
from opd_core.spans.protocols.known import PROTOCOLS, judgement
from opd_core.templates.own_prompt import template_of
from opd_core.types import Draw, GroundingExample, Rollout, Span, make_seed
from storage.audit import links as store
from storage.audit.links import BrokenLink, Checked

if TYPE_CHECKING:
    from storage.runs.run import Run

Compared = tuple[str, float | None, float | None]
"""What it is called, what is stored, what it should be."""
IOU_TOLERANCE = 1e-9
"""Of means that may be summed in another order."""


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
        raise BrokenLink(f"{file}: {where or 'it'} cannot be read ({problem['msg']})") from None
    if (found := config_hash(json.loads(text))) != digest:
        raise BrokenLink.at(str(file), "its hash", found, digest)
    return config


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


def steps(run: Run) -> Checked:
    """Each optimiser step had the rollouts and tokens that selection, seed and config say."""
    from opd_core.update.student import plan_steps

    store.unique(run, "selections")
    store.unique(run, "updates")
    store.unique(run, "trained_rollouts")
    count, early = 0, []
    for row in store.settled(run):
        version, where = row["parent_version"], f"updates, policy_version {row['policy_version']}"
        config = config_of(run, row["config_hash"])
        taken = selected_of(run, version)
        ours = examples_of(run, version, {r.example_id for r in taken})
        plan = plan_steps(ours, config, version)
        lengths: dict[str, list[int]] = {}
        for rollout in taken:
            lengths.setdefault(rollout.example_id, []).append(len(rollout.completion_token_ids))
        if len(row["steps"]) > len(plan):
            raise BrokenLink.at(where, "the number of steps", len(row["steps"]), len(plan))
        if len(row["steps"]) < len(plan):
            if row["stopped_early"] is None:
                raise BrokenLink.at(where, "the number of steps", len(row["steps"]), len(plan))
            early.append(f"policy {row['policy_version']}: {row['stopped_early']}")
        passes: Counter[str] = Counter()
        for step, batch in zip(row["steps"], plan, strict=False):
            passes.update(e.example_id for e in batch)
            expected = [n for e in batch for n in lengths[e.example_id]]
            for name, value in (("rollouts", len(expected)), ("tokens", sum(expected))):
                if step[name] != value:
                    raise BrokenLink.at(f"{where}, step {step['step']}", name, step[name], value)
        trained = [n for example in passes for n in lengths[example]]
        for name, value in (("rollouts", len(trained)), ("tokens", sum(trained))):
            if row[name] != value:
                raise BrokenLink.at(where, name, row[name], value)
        often = max(passes.values(), default=0)
        if often > config.update.epochs:
            raise BrokenLink.at(where, "passes over a rollout", often, config.update.epochs)
        _first_met(run, row, config, plan[: len(row["steps"])], taken)
        count += len(row["steps"])
    return Checked(count, "steps", tuple(early))


def _first_met(
    run: Run,
    row: dict[str, Any],
    config: Config,
    plan: list[list[GroundingExample]],
    taken: list[Rollout],
) -> None:
    """`trained_rollouts` has each trained rollout, at the step that the plan gives it to first."""
    first: dict[str, int] = {}
    for number, batch in enumerate(plan):
        for example in batch:
            first.setdefault(example.example_id, number)
    this = pl.col("policy_version") == row["parent_version"]
    frame = run.trained_rollouts().filter(this)
    met = {name: (step, logprobs) for name, step, logprobs in frame.select(
        "rollout_id", "step", "student_logprobs").collect().iter_rows()}  # fmt: skip
    largest = row["logprob_bound"] or config.update.max_logprob_mismatch  # older rows have none
    apart: list[float] = []
    for rollout in taken:
        where = f"trained_rollouts, {rollout.rollout_id}"
        step, logprobs = met.pop(rollout.rollout_id, (None, []))
        if step != first.get(rollout.example_id):
            raise BrokenLink.at(where, "step", step, first.get(rollout.example_id))
        expected = len(rollout.completion_token_ids)
        if step is not None and len(logprobs) != expected:
            raise BrokenLink.at(where, "the number of its log-probs", len(logprobs), expected)
        if step == 0 and rollout.answered_by == "student":
            sampled = rollout.sampling_logprobs or ()
            apart += [abs(a - b) for a, b in zip(logprobs, sampled, strict=True)]
            worst = max(apart[-len(sampled) :])
            if largest is None or not worst <= largest:
                bound = f"at most {largest}"
                raise BrokenLink.at(where, "|student - sampling| at step 0", worst, bound)
    for name in met:
        raise BrokenLink(f"trained_rollouts, {name}: it was trained on and not selected")
    if (bound := row["mean_logprob_bound"]) is not None and apart:
        mean = math.fsum(apart) / len(apart)
        if not mean <= bound:
            where = f"trained_rollouts of policy_version {row['parent_version']}"
            raise BrokenLink.at(where, "mean |student - sampling| at step 0", mean,
                                f"at most {bound}")  # fmt: skip


def selections(run: Run) -> Checked:
    """What focus decided comes out again, from the stored inputs and the config of the round."""
    count = 0
    for row in store.settled(run):
        this = pl.col("policy_version") == row["parent_version"]
        teacher = pl.col("teacher_hash") == row["teacher_hash"]
        stored = run.selections().filter(this).sort("rollout_id").collect()
        removed = _no_longer_annotated(run, stored)
        config = config_of(run, config_hash_of(run, "selections", row["parent_version"]))
        question = _made_with(run, stored, config, row["parent_version"])
        stored = stored.filter(pl.col("reason") != curriculum.GONE)
        asked = pl.col("question_hash").eq_missing(pl.lit(question, pl.String))
        scores = run.teacher_scores().filter(this & teacher)
        again = curriculum.select(
            run.rollouts().filter(this & ~pl.col("rollout_id").is_in(removed)),
            run.teacher_predictions().filter(teacher & asked),
            config.focus,
            _focus_seed(config, row["parent_version"]),
            curriculum.sampling_k1s(
                run.rollouts().filter(this).select("rollout_id", "sampling_logprobs"),
                scores.select("rollout_id", "teacher_logprobs"),
            ),
        ).collect()
        has_score = scores.select("rollout_id").collect()
        unscored = pl.col("selected") & ~pl.col("rollout_id").is_in(
            has_score["rollout_id"].implode()
        )
        unscored &= pl.lit(config.needs_teacher_scores or curriculum.needs_scores(config.focus))
        again = again.with_columns(
            reason=pl.when(unscored).then(pl.lit(curriculum.NO_SCORE)).otherwise("reason"),
            selected=pl.col("selected") & ~unscored,
        ).sort("rollout_id")
        _same_rows(stored, again)
        count += stored.height + len(removed)
    copied = run.teacher_predictions().filter(pl.col("reused_from").is_not_null())
    foreign = copied.select(pl.len()).collect().item()
    notes = (f"{foreign:,} of the teacher's answers are copies from other runs",)
    return Checked(count, "selections", notes if foreign else ())


def _no_longer_annotated(run: Run, stored: pl.DataFrame) -> list[str]:
    """Rollouts that focus left out because their annotation was gone, as `data_changes` says."""
    rows = stored.filter(pl.col("reason") == curriculum.GONE)
    left_train = run.data_changes().filter(pl.col("split").is_null() | (pl.col("split") == "eval"))
    known = set(left_train.select("item_id").collect()["item_id"])
    for rollout_id, example_id, selected in rows.select(
        "rollout_id", "example_id", "selected"
    ).iter_rows():
        where = f"selections, {rollout_id}"
        if selected or example_id not in known:
            raise BrokenLink(f"{where}: its example was never taken out of the annotations")
    return rows["rollout_id"].to_list()


def _made_with(run: Run, stored: pl.DataFrame, config: Config, version: int) -> str | None:
    """Each row names the settings and seed of the round's config, one question to the teacher (or
    none, where its curriculum asks nothing), and table versions that there were; the question."""
    asked = stored["question_hash"].drop_nulls().mode().sort().to_list()
    question = asked[0] if asked and curriculum.needs_predictions(config.focus) else None
    expected = {
        "settings": config.focus.model_dump_json(),
        "seed": _focus_seed(config, version),
        "question_hash": question,
    }
    newest = run.tables.versions()
    for row in stored.iter_rows(named=True):
        where = f"selections, {row['rollout_id']}"
        for name, value in expected.items():
            if row[name] != value:
                raise BrokenLink.at(where, name, row[name], value)
        for name, table in (
            ("rollouts_version", "rollouts"),
            ("predictions_version", "teacher_predictions"),
            ("scores_version", "teacher_scores"),
        ):
            if not 1 <= row[name] <= newest[table]:
                raise BrokenLink.at(where, name, row[name], f"1 ... {newest[table]}")
    return question


def _focus_seed(config: Config, version: int) -> int:
    return make_seed(config.run.seed, "focus", version, "", 0)


def scores(run: Run) -> Checked:
    """The store's checks, and: the update's teacher is the one that its config names; each score is
    of the content that its rollout has."""
    checked = store.scores(run)
    notes = list(checked.notes)
    _contents(run)
    hashes: dict[str, str] = {}
    for row in store.settled(run):
        folder = config_of(run, row["config_hash"]).teacher.path
        if str(folder) not in hashes:
            if not folder.is_dir():
                notes.append(
                    f"the teacher's folder {folder} is not here, its weights were not read"
                )
                hashes[str(folder)] = row["teacher_hash"]
            else:
                from storage.runs.policies import weights_hash

                hashes[str(folder)] = weights_hash(folder)
        if hashes[str(folder)] != row["teacher_hash"]:
            where = f"updates, policy_version {row['policy_version']}"
            expected = f"{hashes[str(folder)]} ({folder})"
            raise BrokenLink.at(where, "teacher_hash", row["teacher_hash"], expected)
    return Checked(checked.count, checked.of, tuple(dict.fromkeys(notes)))


def _contents(run: Run) -> None:
    columns = ("policy_version", "rollout_id", "teacher_hash", "scorer", "content_hash")
    found = run.teacher_scores().select(columns).collect()
    for (version,), rows in found.group_by("policy_version"):
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
    """Of all that a protocol made of an answer; nothing where it was not kept yet, or where it is
    not installed."""
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


def selected_of(run: Run, version: int) -> list[Rollout]:
    this = pl.col("policy_version") == version
    taken = run.selections().filter(this & pl.col("selected")).select("rollout_id").collect()
    ids = set(taken["rollout_id"])
    found = [r for r in run.read("rollouts", Rollout, this) if r.rollout_id in ids]
    if lost := ids - {r.rollout_id for r in found}:
        raise BrokenLink(f"selections, {min(lost)}: it was selected, and there is no such rollout")
    return found


def examples_of(run: Run, version: int, wanted: set[str]) -> list[GroundingExample]:
    """Those of the round's draw that are wanted, in the order of the draw."""
    draws = run.read("draws", Draw, pl.col("policy_version") == version)
    mine = pl.col("example_id").is_in([d.example_id for d in draws])
    examples = {e.example_id: e for e in run.last_known_examples(mine)}
    order = [d.example_id for d in sorted(draws, key=lambda d: d.position)]
    return [examples[e] for e in order if e in wanted and e in examples]


def config_hash_of(run: Run, table: str, version: int) -> str:
    """Of the config that a round's rows in a table were written with, the last of them."""
    frame = run.scan(table).filter(pl.col("policy_version") == version)
    found = frame.sort("written_at").select("config_hash").collect().to_series()
    if found.is_empty():
        raise BrokenLink(f"{table}: it has no rows of policy {version}, whose round is committed")
    return str(found[-1])


def grouped(
    run: Run, version: int, rows: list[Rollout], asked: Iterable[str] = ()
) -> list[tuple[GroundingExample, list[Rollout]]]:
    """Each example of the round with its rollouts, in order; `asked` are in it even without any."""
    mine: dict[str, list[Rollout]] = {example: [] for example in asked}
    for rollout in sorted(rows, key=lambda r: r.sample_index):
        mine.setdefault(rollout.example_id, []).append(rollout)
    return [(e, mine[e.example_id]) for e in examples_of(run, version, set(mine))]


def _same_rows(stored: pl.DataFrame, again: pl.DataFrame) -> None:
    if stored["rollout_id"].to_list() != again["rollout_id"].to_list():
        counts = Counter(stored["rollout_id"]), Counter(again["rollout_id"])
        odd = min(name for name in counts[0] | counts[1] if counts[0][name] != counts[1][name])
        where = f"selections, {odd}"
        raise BrokenLink.at(where, "the number of its rows", counts[0][odd], counts[1][odd])
    for was, now in zip(
        stored.select(again.columns).iter_rows(named=True),
        again.iter_rows(named=True),
        strict=True,
    ):
        for name, value in now.items():
            same = was[name] == value
            if isinstance(value, float) and isinstance(was[name], float):
                same = abs(was[name] - value) <= IOU_TOLERANCE
            if not same:
                raise BrokenLink.at(f"selections, {was['rollout_id']}", name, was[name], value)
