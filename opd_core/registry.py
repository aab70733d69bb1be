"""What a name in a config stands for: a part of this package, or of somebody else's.

A part of our own is known by where it is defined, and imported when it is asked for. Another
package adds one by an entry point of the group, whose name is what stands in the config:

    [project.entry-points."videoopd.objectives"]
    mine = "my_package.mine:OBJECTIVE"
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from opd_core.types import VideoOPDError

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler
    from pydantic_core import CoreSchema

UNKNOWN = "unknown_part"
"""The type of pydantic's error where a field annotated with a registry has no name of it."""
Part = TypeVar("Part")


class Registry(Generic[Part]):
    """The parts of one kind, by name; those of this package first, in their order."""

    def __init__(self, group: str, part: type[Part], own: Mapping[str, str]) -> None:
        """`own`: name -> `module:attribute`."""
        self.group = group
        self._part = part
        self._own = own
        self._loaded: dict[str, Part] = {}

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (name in self._own or name in self._others)

    def __iter__(self) -> Iterator[str]:
        yield from dict.fromkeys((*self._own, *self._others))

    def __getitem__(self, name: str) -> Part:
        """Raises `VideoOPDError` where there is no such part, or it cannot be loaded."""
        if name not in self._loaded:
            if problem := self.problem(name):
                raise VideoOPDError(f"{self.group} {problem}")
            self._loaded[name] = self._load(name)
        return self._loaded[name]

    @property
    def foreign(self) -> tuple[str, ...]:
        """The names that other packages give."""
        return tuple(self._others)

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Let `Annotated[str, registry]` take a name of it, or a table whose keys are names."""
        from pydantic_core import PydanticCustomError, core_schema

        def known(value: Any) -> Any:
            for name in value if isinstance(value, dict) else [value]:
                if problem := self.problem(name):
                    raise PydanticCustomError(UNKNOWN, "{problem}", {"problem": problem})
            return value

        return core_schema.no_info_before_validator_function(known, handler(source))

    def problem(self, name: object) -> str | None:
        """`knows no 'gpro'; did you mean 'grpo'?`; None where the name is known."""
        if name in self:
            return None
        near = difflib.get_close_matches(str(name), list(self), n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are: {', '.join(self)}"
        return f"knows no {name!r}; {hint}"

    @cached_property
    def _others(self) -> dict[str, list[EntryPoint]]:
        """Name -> what other packages give by it; listing the names raises for none of them."""
        others: dict[str, list[EntryPoint]] = {}
        for point in sorted(set(entry_points(group=self.group)), key=lambda p: (p.name, p.value)):
            others.setdefault(point.name, []).append(point)
        return others

    def _load(self, name: str) -> Part:
        """A name has one meaning: where several give it, none of them is taken."""
        givers = [f"{name} = {point.value}" for point in self._others.get(name, [])]
        givers += ["videoopd itself"] if name in self._own else []
        if len(givers) > 1:
            raise VideoOPDError(
                f"{name!r} of {self.group} is given by {' and by '.join(givers)}; give one of them "
                "another name, or uninstall its package"
            )
        if name in self._own:
            module, _, attribute = self._own[name].partition(":")
            own: Part = getattr(importlib.import_module(module), attribute)
            return own
        try:
            part = self._others[name][0].load()
        except (Exception, SystemExit) as error:  # whatever a module of somebody else's does
            raise VideoOPDError(
                f"the entry point {givers[0]} of {self.group} cannot be loaded: "
                f"{type(error).__name__}: {error}; repair its package, or uninstall it"
            ) from error
        if not isinstance(part, self._part):
            raise VideoOPDError(
                f"the entry point {givers[0]} of {self.group} is a {type(part).__name__}; make it "
                f"a {self._part.__module__}.{self._part.__name__}"
            )
        return part
