"""What every section of a config is, and one that takes the settings of the parts it chooses."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, ClassVar, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from opd_core.registry import UNKNOWN, Registry
from opd_core.types import VideoOPDError

LATER = "later"
"""Beside the type of a setting that came after configs had been hashed: it is in the JSON of a
config, and so in its hash, only where it is not the default, which is what those did."""


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    @model_serializer(mode="wrap")
    def _as_before(self, as_json: SerializerFunctionWrapHandler) -> dict[str, object]:
        content: dict[str, object] = as_json(self)
        for name in self.not_written():
            content.pop(name, None)
        return content

    def not_written(self) -> set[str]:
        """The keys that are not in its JSON."""
        fields = type(self).model_fields.items()
        return {n for n, f in fields if LATER in f.metadata and getattr(self, n) == f.default}


class ChoosingSection(Section):
    """A section in which parts are chosen by name, and which takes their settings: [update.NAME].

    What a part takes stands in its record, and in the config, and so in its hash, only where
    somebody gives it. Settings of our oldest parts are fields of the section: runs hash with them.
    """

    model_config = ConfigDict(extra="allow")
    parts: ClassVar[Registry[Any]]

    def chosen(self) -> Sequence[str]:
        """The parts that are in use."""
        raise NotImplementedError

    def of(self, name: str) -> Any:
        """The settings of a part: as given, else its defaults; None where it takes none."""
        kind = self.parts[name].settings
        if kind is None:
            return None
        given = dict(self).get(name)
        return given if isinstance(given, kind) else self._checked(name, {})

    @classmethod
    def settings_of(cls, name: str) -> type[Section] | None:
        """What a part takes that is no field of this section; None where there is nothing."""
        kind = cls.parts[name].settings if name in cls.parts else None
        if kind is None:
            return None
        if name in cls.model_fields:  # what stands there is the field's
            if name not in cls.parts.foreign:
                return None
            raise VideoOPDError(
                f"{name!r} of {cls.parts.group} takes settings, and the config has a key of that "
                "name; give it another name in its package"
            )
        if isinstance(kind, type) and issubclass(kind, Section):
            return kind
        raise VideoOPDError(
            f"the settings of {name!r} of {cls.parts.group} are {kind!r}; make them a class that "
            "inherits from opd_core.config.section.Section"
        )

    def foreign_settings(self, name: str) -> dict[str, object] | None:
        """As JSON, for a key of what they change; None where the part is our own, whose settings
        are named there one by one, or takes none."""
        settings: Section | None = self.of(name) if name in self.parts.foreign else None
        return None if settings is None else settings.model_dump(mode="json")

    @classmethod
    def known_keys(cls) -> list[str]:
        """What it knows: its fields, what our parts take, and the parts of other packages."""
        others = cls.parts.foreign
        ours = [name for name in cls.parts if name not in others and cls.settings_of(name)]
        return [*cls.model_fields, *ours, *others]

    @model_validator(mode="before")
    @classmethod
    def _takes_what_parts_take(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        others = [name for name in data if name not in cls.model_fields]
        return data | {name: cls._checked(name, data[name]) for name in others}

    @model_validator(mode="after")
    def _has_what_its_parts_need(self) -> Self:
        for name in self.chosen():
            self.of(name)
        return self

    @classmethod
    def _checked(cls, name: str, given: Any) -> Any:
        """Raises with the place of what is wrong with it, which pydantic puts behind that of this
        section."""
        kind = cls.settings_of(name)
        if kind is None:
            problem = PydanticCustomError(UNKNOWN, "takes no settings; remove it")
            error = problem if name in cls.parts.foreign else "extra_forbidden"
            unknown = InitErrorDetails(type=error, loc=(name,), input=given)
            raise ValidationError.from_exception_data(cls.__name__, [unknown])
        return _sections(kind).validate_python({name: given})[name]


@cache
def _sections(kind: type[Section]) -> TypeAdapter[dict[str, Any]]:
    """What checks {name: a section}, so that errors begin with the name."""
    return TypeAdapter(dict[str, kind])  # type: ignore[valid-type]
