"""A config with every key, its meaning and its default, made from the sections themselves.

What has to be said (paths) stands there to be filled in; what has a default stands there as a
comment, `#key = value`, so that a config keeps following the defaults it does not change. The text
under a field is its docstring in `sections.py`.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from opd_core.config.load import Config
from opd_core.config.section import ChoosingSection
from opd_core.config.toml_text import toml_value
from opd_core.registry import Registry

WIDTH = 96
_HEAD = """\
A config of Video-OPD. Fill in the paths below; all other keys stand here with their defaults,
behind a #: remove the # to change one. Paths are relative to this file.

  videoopd run THIS_FILE --rounds 3
"""
_TO_FILL_IN: dict[tuple[str, ...], str] = {
    ("run", "path"): "runs/first",
    ("data", "train"): "data/train.jsonl",
    ("data", "eval"): "data/eval.jsonl",
    ("data", "videos"): "data/videos",
    ("student", "path"): "Qwen/Qwen3-VL-8B-Instruct",
    ("teacher", "path"): "Qwen/Qwen3-VL-32B-Instruct",
    ("teachers", "name"): "large",
    ("teachers", "path"): "Qwen/Qwen3-VL-32B-Instruct",
}
"""What the keys without a default begin with."""


def config_template() -> str:
    """The text of the file."""
    lines = [f"# {line}".rstrip() for line in _HEAD.splitlines()]
    for name, field in Config.model_fields.items():
        lines += ["", *_section_in((name,), field)]
    lines += _of_parts((), Config)
    return "\n".join(lines) + "\n"


def _section(
    place: tuple[str, ...], model: type[BaseModel], several: bool = False
) -> Iterator[str]:
    head = f"[[{place[0]}]]" if several else f"[{'.'.join(place)}]"
    yield from _comment(inspect.cleandoc(model.__doc__) if model.__doc__ else "")
    yield head
    inside: list[tuple[str, FieldInfo]] = []
    for name, field in model.model_fields.items():
        if holds_a_section(field):
            inside.append((name, field))
            continue
        yield _line(place, name, field)
        text = f"{choices(field)} {meanings(model).get(name, '')}"
        yield from _comment(text, indent="    ")
        for known in (kind for kind in field.metadata if isinstance(kind, Registry)):
            for part in known:
                yield from _comment(f"{part}: {known[part].about}", indent="      ")
    for name, field in inside:
        yield ""
        yield from _section_in((*place, name), field)
    yield from _of_parts(place, model)


def _section_in(place: tuple[str, ...], field: FieldInfo) -> Iterator[str]:
    several = holds_several(field)
    written = _optional_section if several or field.default is None else _section
    yield from written(place, section_of(field), several)


def _of_parts(place: tuple[str, ...], model: type[BaseModel]) -> Iterator[str]:
    """What parts take, each in a section that is absent unless one writes it."""
    for name, section in sections_of_parts(model):
        yield ""
        yield from _optional_section((*place, name), section)


def sections_of_parts(model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    """Part -> the section of its settings, of those that are no field of `model`."""
    if issubclass(model, ChoosingSection):
        for name in model.parts:
            if section := model.settings_of(name):
                yield name, section


def _optional_section(
    place: tuple[str, ...], model: type[BaseModel], several: bool = False
) -> Iterator[str]:
    """A section that is absent unless one writes it: all of it a comment."""
    yield "# Absent, unless you write this section:"
    for line in _section(place, model, several):
        yield line if line.startswith("#") else f"#{line}"


def _line(place: tuple[str, ...], name: str, field: FieldInfo) -> str:
    if field.is_required():
        value = _TO_FILL_IN.get((*place, name))
        return f"{name} = {toml_value(value if value is not None else _least(field))}"
    if field.default is None:
        return f"#{name} =                    (not set)"
    return f"#{name} = {toml_value(field.default)}"


def choices(field: FieldInfo) -> str:
    """What a key may be, where that is a list of words."""
    words = _literals(kinds(field))
    for kind in kinds(field):
        if listed := _literals(get_args(kind)) if get_origin(kind) is tuple else []:
            words.append(f"a list of {' and '.join(listed)}")
    words = words or [w for w in get_args(field.annotation) if isinstance(w, str)]
    words = words or [w for known in field.metadata if isinstance(known, Registry) for w in known]
    return f"{', '.join(words[:-1])} or {words[-1]}." if words else ""


def _literals(types: Iterable[object]) -> list[str]:
    return [word for kind in types if get_origin(kind) is Literal for word in get_args(kind)]


def _least(field: FieldInfo) -> object:
    """A value that passes, for a required number inside an optional section."""
    return 8 if int in (field.annotation, *get_args(field.annotation)) else ""


def _comment(text: str, indent: str = "") -> Iterator[str]:
    for line in textwrap.wrap(" ".join(text.split()), WIDTH - len(indent) - 2):
        yield f"# {indent}{line}"


def holds_a_section(field: FieldInfo) -> bool:
    """Whether a field of a section is a section itself."""
    return any(isinstance(k, type) and issubclass(k, BaseModel) for k in kinds(field))


def holds_several(field: FieldInfo) -> bool:
    """Whether a field is a list of sections."""
    return get_origin(field.annotation) is tuple and holds_a_section(field)


def section_of(field: FieldInfo) -> type[BaseModel]:
    """The section that a field holds."""
    return next(k for k in kinds(field) if isinstance(k, type) and issubclass(k, BaseModel))


def kinds(field: FieldInfo) -> tuple[object, ...]:
    """The types that a field may have."""
    return (field.annotation, *get_args(field.annotation))


def meanings(model: type[BaseModel]) -> dict[str, str]:
    """Field -> the docstring under it, those of the classes it is made from too."""
    texts: dict[str, str] = {}
    for kind in reversed(model.__mro__):
        if kind is not BaseModel and issubclass(kind, BaseModel):
            texts |= _documented(Path(inspect.getfile(kind))).get(kind.__name__, {})
    return texts


@cache
def _documented(file: Path) -> dict[str, dict[str, str]]:
    """Class -> field -> the text that stands under it in the file."""
    classes = [n for n in ast.parse(file.read_text()).body if isinstance(n, ast.ClassDef)]
    texts: dict[str, dict[str, str]] = {}
    for node in classes:
        pairs = zip(node.body, node.body[1:], strict=False)
        texts[node.name] = {
            field.target.id: inspect.cleandoc(text.value.value)
            for field, text in pairs
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
            and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
            and isinstance(text.value.value, str)
        }  # fmt: skip
    return texts
