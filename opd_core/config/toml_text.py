"""Values as TOML text, as they stand behind `key = `."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path


def toml_value(value: object) -> str:
    """
    >>> toml_value({"rank": 8, "on": True, "names": ("a", "b")})
    '{ rank = 8, on = true, names = ["a", "b"] }'
    """
    match value:
        case bool():
            return str(value).lower()
        case str() | Path():
            return json.dumps(str(value), ensure_ascii=False)
        case int() | float():
            return repr(value)
        case Mapping():
            pairs = ", ".join(f"{toml_key(k)} = {toml_value(v)}" for k, v in value.items())
            return f"{{ {pairs} }}" if pairs else "{}"
        case Sequence():
            return f"[{', '.join(toml_value(item) for item in value)}]"
        case _:
            return str(value)  # dates and times


def toml_key(key: str) -> str:
    bare = key.replace("-", "").replace("_", "").isalnum() and key.isascii()
    return key if bare else json.dumps(key, ensure_ascii=False)
