"""The part of the documentation that the code says itself: `docs/reference/`, and the map's rooms.

    python docs/generate.py        # writes the pages again (`make docs` does it first)

A page is a function here; tests/test_docs.py holds that what is written is what the code says now.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from flows.cli import program  # noqa: E402
from flows.numbers import rounds, stages, steps  # noqa: E402
from flows.tracking import names  # noqa: E402
from opd_core.config.load import Config  # noqa: E402
from opd_core.config.section import Section  # noqa: E402
from opd_core.config.sections import ModelPath  # noqa: E402
from opd_core.config.template import (  # noqa: E402
    choices,
    holds_a_section,
    holds_several,
    meanings,
    section_of,
    sections_of_parts,
)
from opd_core.config.toml_text import toml_value  # noqa: E402
from opd_core.extensions import (  # noqa: E402
    CURRICULA,
    ENGINES,
    OBJECTIVES,
    TEMPLATES,
    TRACKERS,
    Engine,
    Objective,
)
from opd_core.spans.protocols.known import PROTOCOLS  # noqa: E402
from opd_core.types import Judgement, StageUse, UpdateStep  # noqa: E402
from storage.tables.columns import columns_of  # noqa: E402
from storage.tables.schemas import PROVENANCE, SCHEMA_VERSION, TABLES  # noqa: E402

MADE = "<!-- made by docs/generate.py: change the code, then `make docs` -->"
PACKAGES = ("flows", "opd_core", "storage")


def pages() -> dict[Path, str]:
    """Every generated page, by its path, as it has to be now."""
    docs = ROOT / "docs"
    reference = docs / "reference"
    return {
        reference / "config.md": config_page(),
        reference / "tables.md": tables_page(),
        reference / "commands.md": commands_page(),
        reference / "objectives.md": objectives_page(),
        reference / "trackers.md": trackers_page(),
        docs / "tree.md": tree_page((docs / "tree.md").read_text(encoding="utf-8")),
    }


def _page(title: str, *blocks: str) -> str:
    return "\n\n".join((f"# {title}", MADE, *(block for block in blocks if block))) + "\n"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(_cell(text) for text in line)} |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


# --- config --------------------------------------------------------------------------------------


def config_page() -> str:
    """Every section and key of a config."""
    head = (
        "A config is TOML, one table a section. Unknown keys are refused. `videoopd init` writes a "
        "file with all of this in it."
    )
    fields = Config.model_fields.items()
    sections_text = (
        block
        for name, field in fields
        for block in _section(
            f"[{name}]" if holds_several(field) else name,
            section_of(field),
            field.default is None or holds_several(field),
        )
    )
    of_engines = (
        block
        for name, section in sections_of_parts(Config)
        for block in _section(name, section, optional=True)
    )
    return _page("Config keys", head, *sections_text, *of_engines)


def _section(place: str, section: type[BaseModel], optional: bool = False) -> Iterator[str]:
    yield f"## `[{place}]`"
    if optional:
        yield "Absent, unless you write this section."
    if section.__doc__ and section.__doc__ != Section.__doc__:
        yield inspect.cleandoc(section.__doc__)
    plain = {n: f for n, f in section.model_fields.items() if not holds_a_section(f)}
    rows = (
        (f"`{name}`", _takes(field), _default(field), meanings(section).get(name, ""))
        for name, field in plain.items()
    )
    yield _table(("key", "takes", "default", "meaning"), rows)
    for name, field in section.model_fields.items():
        if name not in plain:
            inside = f"{place.strip('[]')}.{name}"
            yield from _section(inside, section_of(field), field.default is None)
    for name, of_part in sections_of_parts(section):
        yield from _section(f"{place}.{name}", of_part, optional=True)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    return "not set" if field.default is None else f"`{toml_value(field.default)}`"


_KINDS = {
    int: "whole number", float: "number", bool: "true or false", str: "text", Path: "path",
    ModelPath: "path or name",
}  # fmt: skip
_BOUNDS = {"gt": "above {}", "ge": "from {}", "lt": "below {}", "le": "to {}"}


def _takes(field: FieldInfo) -> str:
    words = choices(field)
    if words:
        return words.rstrip(".")
    bounds = list(_bounds(field.metadata))
    return " ".join([" or ".join(dict.fromkeys(_kinds(field.annotation, bounds))), *bounds])


def _kinds(annotation: Any, bounds: list[str]) -> Iterator[str]:
    """The names of the types in an annotation; what bounds them is added to `bounds`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in _KINDS:
        yield _KINDS[annotation]
    elif origin is Annotated:
        for mark in arguments[1:]:
            bounds += _bounds(getattr(mark, "metadata", [mark]))
        yield from _kinds(arguments[0], bounds)
    elif origin in (tuple, list):
        yield "list"
    elif origin is dict:
        yield "table"
    else:
        for argument in arguments:
            yield from _kinds(argument, bounds)


def _bounds(marks: Iterable[Any]) -> Iterator[str]:
    for mark in marks:
        for name, words in _BOUNDS.items():
            if hasattr(mark, name):
                yield words.format(f"{getattr(mark, name):g}")


# --- tables --------------------------------------------------------------------------------------


def tables_page() -> str:
    """Every table and column."""
    head = (
        f"Format {SCHEMA_VERSION}. Absent is null, never 0.0. Times are seconds of the video, "
        "log-probabilities natural logarithms. The two views, `trajectories` and `tokens`, are in "
        "[Asking a run](../ask.md)."
    )
    blocks = [head]
    for table in TABLES.values():
        writer = f"the stage `{table.writer}`" if table.writer else "any stage"
        key = ", ".join(f"`{name}`" for name in table.key)
        blocks += [f"## `{table.name}`", table.description]
        blocks += [f"Written by {writer}. A row is known by {key}.", _columns(table.own_columns)]
    steps = "Of `updates.steps`, a struct a step."
    blocks += ["## A step of an update", steps, _columns(columns_of(UpdateStep))]
    stages = "Of `updates.stages`, a struct a stage."
    blocks += ["## What a stage took", stages, _columns(columns_of(StageUse))]
    judgements = "Of `judgements` in `evaluations` and `model_evaluations`, a struct a protocol."
    blocks += ["## A judgement of an answer", judgements, _columns(columns_of(Judgement))]
    blocks += ["## Of every row", "The store adds these to each table.", _columns(PROVENANCE)]
    return _page("Tables and columns", *blocks)


def _columns(columns: Iterable[Any]) -> str:
    rows = (
        (f"`{c.name}`", f"`{_arrow(c.type)}`", "yes" if c.optional else "", c.description)
        for c in columns
    )
    return _table(("column", "type", "null", "meaning"), rows)


def _arrow(kind: Any) -> str:
    text = str(kind)
    return text if len(text) < 60 else f"{text[: text.index('<') + 1]}...>"


# --- commands ------------------------------------------------------------------------------------


def commands_page() -> str:
    """Every command with what it takes."""
    blocks = _command(click.Context(program, info_name="videoopd", **program.context_settings), 2)
    return _page("Commands", program.epilog or "", *blocks)


def _command(context: click.Context, level: int) -> Iterator[str]:
    command = context.command
    yield f"{'#' * level} `{context.command_path}`"
    yield command.help or ""
    known = (one.get_help_record(context) for one in command.params)
    rows = [(f"`{names}`", text) for names, text in filter(None, known)]
    if rows:
        yield _table(("argument", "meaning"), rows)
    if isinstance(command, click.Group):
        for name, one in command.commands.items():
            below = click.Context(one, context, info_name=name)
            yield from _command(below, min(level + 1, 4))


# --- parts that are registered by name -----------------------------------------------------------


def objectives_page() -> str:
    """Every objective, curriculum, engine, template and protocol, with what it says of itself."""
    objectives = (
        (f"`{name}`", one.about, _needs(one), ", ".join(one.importance_levels) or "none")
        for name, one in ((name, OBJECTIVES[name]) for name in OBJECTIVES)
    )
    curricula = (
        (
            f"`{name}`",
            one.about,
            "yes" if one.ranked is not None else "no",
            "yes" if one.needs_student else "no",
        )
        for name, one in ((name, CURRICULA[name]) for name in CURRICULA)
    )
    engines = (
        (f"`{name}`", one.about, _can(one), ", or ".join(f"`{n}`" for n in one.needs) or "nothing")
        for name, one in ((name, ENGINES[name]) for name in ENGINES)
    )
    templates = ((f"`{name}`", TEMPLATES[name].about) for name in TEMPLATES)
    blocks = [
        "Another package adds one by an entry point of the groups `videoopd.objectives`, "
        "`videoopd.curricula`, `videoopd.engines`, `videoopd.templates`, `videoopd.formats` and "
        "`videoopd.protocols`; "
        "`CONTRIBUTING.md` says how.",
        "## Objectives",
        "`update.objective`; which to use when is in "
        "[Change the objective](../how-to/objectives.md).",
        _table(("objective", "", "needs", "importance weights (`update.tis`)"), objectives),
    ]
    for name in OBJECTIVES:
        blocks += _with_its_module(name, OBJECTIVES[name].loss)
    blocks += [
        "## Curricula",
        "`focus.curriculum`; which to use when is in "
        "[Choose what to train on](../how-to/curricula.md).",
        _table(("curriculum", "", "teacher predictions", "the student's IoU"), curricula),
    ]
    for name in CURRICULA:
        blocks += _with_its_module(name, CURRICULA[name].pick)
    blocks += [
        "## Engines",
        "`rollout.engine`, `teacher.engine` and `evaluate.engine`; when to take vLLM is in "
        "[Sample with vLLM](../how-to/vllm.md).",
        _table(("engine", "", "beside sampling", "to install"), engines),
    ]
    for name in ENGINES:
        blocks += _with_its_module(name, ENGINES[name].opened)
    blocks += ["## Prompt templates", "`prompt.template`.", _table(("template", ""), templates)]
    protocols = (
        (f"`{name}`", one.about, ", ".join(one.metrics.values()))
        for name, one in ((name, PROTOCOLS[name]) for name in PROTOCOLS)
    )
    blocks += [
        "## Evaluation protocols",
        "Each answer of the eval split is judged by all of them; "
        "[Evaluate](../how-to/evaluate.md) tells how they differ.",
        _table(("protocol", "", "numbers"), protocols),
    ]
    return _page("Objectives, curricula, engines, templates, protocols", *blocks)


def trackers_page() -> str:
    """What trackers are told, by name, and the columns of the numbers it is made of."""
    kinds = ((f"`{name}`", TRACKERS[name].about) for name in TRACKERS)
    told = (
        (f"`{name}`", axis, known_from or "ours", means)
        for name, axis, known_from, means in names.listed()
    )
    blocks = [
        "What `[tracking]` and `videoopd track` tell ([how](../how-to/track.md)). Another package "
        "adds a tracker by an entry point of the group `videoopd.trackers`. What a run has not is "
        "not told, and never a zero.",
        "## Trackers",
        _table(("tracker", "what it is"), kinds),
        "## Names",
        "MLflow writes `_` for `@`.",
        _table(("name", "axis", "known from", "what it is"), told),
    ]
    of_numbers = (("rounds", rounds.columns()), ("steps", steps.columns()))
    for name, columns in (*of_numbers, ("stages", stages.columns())):
        rows = ((f"`{column}`", means) for column, means in columns.items())
        blocks += [
            f"## `flows.numbers.{name}`",
            f"`{name}(run)` gives a polars frame: in Python, `from flows.numbers.{name} import "
            f"{name}`.",
            _table(("column", "what it is"), rows),
        ]
    return _page("Trackers and numbers", *blocks)


def _with_its_module(name: str, function: object) -> list[str]:
    """A heading, the file that defines the part, and what the file says of it."""
    module = inspect.getmodule(function)
    assert module is not None and module.__doc__ is not None
    return [f"### `{name}`", f"`{module.__name__.replace('.', '/')}.py`:", _quoted(module.__doc__)]


def _needs(objective: Objective) -> str:
    needs = {
        "the student's own answers": objective.on_policy_only,
        "all answers to an example": objective.needs_groups,
        "the teacher's log-probs": objective.of_teacher == "logprobs",
        "the teacher's distribution": objective.of_teacher == "distribution",
        "the teacher's whole distribution": objective.of_teacher == "vocabulary",
    }
    return ", ".join(words for words, needed in needs.items() if needed) or "only the answers"


def _can(engine: Engine) -> str:
    can = {
        "scores": engine.scorer is not None,
        "gives entropies and hidden states": engine.whole_distribution,
        "is the trainer itself": engine.is_the_trainer,
        "is weighed by `update.tis`": not engine.is_the_trainer,
        "can run in another precision than the model's": engine.dtype is not None,
        f"opens a teacher in {' or '.join(engine.quantises)}": bool(engine.quantises),
    }
    return ", ".join(words for words, does in can.items() if does)


def _quoted(docstring: str) -> str:
    return "\n".join(f"    {line}".rstrip() for line in inspect.cleandoc(docstring).splitlines())


# --- the map -------------------------------------------------------------------------------------


def tree_page(now: str) -> str:
    """The map: what is written by hand stays, what follows `MADE` is a line a room and a module."""
    return "\n\n".join((now.split(MADE)[0].rstrip(), MADE, *_rooms())) + "\n"


def _rooms() -> Iterator[str]:
    for package in PACKAGES:
        for start in sorted((ROOT / package).rglob("__init__.py"), key=lambda p: p.parent.parts):
            room = start.parent
            level = 2 if room.parent == ROOT else 3
            yield f"{'#' * level} `{room.relative_to(ROOT)}/`"
            yield _first(start)
            modules = sorted(p for p in room.glob("*.py") if p != start)
            yield "\n".join(f"- `{p.relative_to(ROOT)}`: {_first(p)}" for p in modules)


def _first(file: Path) -> str:
    """The first paragraph of a module's docstring, on one line."""
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return " ".join(docstring.split("\n\n")[0].split())


def main() -> None:
    """Write every page that is not as it has to be."""
    for path, text in pages().items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
