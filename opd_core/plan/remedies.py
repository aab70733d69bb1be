"""Which settings make a stage fit that does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import combinations

from pydantic import ValidationError

from opd_core.config.load import Config
from opd_core.plan.memory import answers_of_teacher

Change = dict[str, object]
"""`section.key` -> value, of one thing that is changed."""
MOST_CHANGES = 3


def remedy(config: Config, stage: str, fits: Callable[[Config], bool]) -> Change | None:
    """The fewest changes with which `fits` says yes, those first that cost least; None where none
    of the known ones, three together, does."""
    known = [change for change in _changes(config, stage) if _changed(config, change) is not None]
    for count in range(1, MOST_CHANGES + 1):
        for parts in combinations(known, count):
            keys = [key for part in parts for key in part]
            if len(keys) > len(set(keys)):
                continue
            together = {key: value for part in parts for key, value in part.items()}
            changed = _changed(config, together)
            if changed is not None and fits(changed):
                return {k: v for k, v in together.items() if _value(config, k) != v}
    return None


def _changes(config: Config, stage: str) -> Iterator[Change]:
    """Things to change, in the order in which they are to be tried."""
    update, teacher = config.update, config.teacher
    if stage == "update":
        if update.gradient_checkpointing is not True:
            yield {"update.gradient_checkpointing": True}
        for rows in _halved(update.completion_rows_per_chunk, 128):
            yield {"update.completion_rows_per_chunk": rows}
        for tokens in _halved(update.max_tokens_per_pack, 1024):
            yield {"update.max_tokens_per_pack": tokens}
        if update.lora is None:
            low = {"update.weights": "bfloat16", "student.dtype": "bfloat16"}
            for bits in ("adamw_8bit", "adamw_4bit"):
                yield {**low, "update.optimizer": bits}
            yield {"update.offload": True, "update.weights": "float32"}
            yield {"update.lora.rank": 32, "update.freeze_vision": True}
        yield from _shorter_videos(config)
        return
    if stage in ("validate", "rollout"):
        for prompts in _halved(config.rollout.prompts_per_batch, 1):
            yield {"rollout.prompts_per_batch": prompts}
    if stage == "evaluate":
        for prompts in _halved(config.evaluate.prompts_per_batch, 1):
            yield {"evaluate.prompts_per_batch": prompts}
    if stage == "score":
        for tokens in _halved(update.max_tokens_per_pack, 1024):
            yield {"update.max_tokens_per_pack": tokens}
        for rows in _halved(update.completion_rows_per_chunk, 128):
            yield {"update.completion_rows_per_chunk": rows}
    role = "teacher" if answers_of_teacher(config, stage) else "student"
    if getattr(config, role).dtype == "float32":
        yield {f"{role}.dtype": "bfloat16"}
    if role == "teacher" and teacher.quantise == "none":
        yield {"teacher.quantise": "fp8"}
        yield {"teacher.quantise": "int4"}
    yield from _shorter_videos(config)


def _shorter_videos(config: Config) -> Iterator[Change]:
    for tokens in _halved(config.video.max_video_tokens, 1024):
        yield {"video.max_video_tokens": tokens}


def _halved(value: int, least: int) -> Iterator[int]:
    while value > least:
        value = max(least, value // 2)
        yield value


def _value(config: Config, name: str) -> object:
    found: object = config
    for key in name.split("."):
        found = None if found is None else getattr(found, key)
    return found


def _changed(config: Config, change: Mapping[str, object]) -> Config | None:
    """The config with it, None where a config may not say that, or says it already."""
    content = config.model_dump()
    before = config.model_dump()
    for name, value in change.items():
        *sections, key = name.split(".")
        at = content
        for section in sections:
            at[section] = at[section] or {}
            at = at[section]
        at[key] = value
    try:
        return None if content == before else Config.model_validate(content)
    except ValidationError:
        return None
