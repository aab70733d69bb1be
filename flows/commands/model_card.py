"""README.md of a policy as a Hugging Face folder: what it is, how it was made, how well it does.

All of it is read from the run; no path of this machine is in it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from flows.console.report import ABSENT
from flows.evaluation.answers import Answers, of_policy
from flows.evaluation.groups import Group, groups
from opd_core.hub.name import cached_model, model_name
from opd_core.spans.bootstrap import Estimate
from opd_core.spans.metrics import no_span
from opd_core.spans.protocols.known import PROTOCOLS
from opd_core.types import VideoOPDError
from storage.runs import run_folder
from storage.runs.run import Run

ARXIV = "2602.02994"
TASK, TASK_NAME = "video-text-to-text", "temporal video grounding"
SECTIONS = ("update", "rollout", "focus", "score", "prompt", "video")
"""Of the config, those that say how it was trained."""


@dataclass(frozen=True, slots=True)
class Evaluated:
    """How a policy does on the eval split: the mean of each metric, with its interval."""

    policy_version: int
    group: Group


def card(run: Run, version: int) -> str:
    """Write the whole text of the card of policy `version`, which must be of a round."""
    from huggingface_hub import ModelCard, ModelCardData

    config = run.config_of_policy(run.policy(version)) or {}
    content = run_folder.read(run.path)
    base = Path(content["student"]["path"])
    teachers = [Path(teacher["path"]) for teacher in run_folder.teachers(content)]
    evaluated = _evaluated(run, version)
    base_name, teacher_name = hub_name(base), " and ".join(map(hub_name, teachers))
    licence = _licence(base)
    data = ModelCardData(
        model_name=f"{base_name.rsplit('/', 1)[-1]}-video-opd-{version}",
        base_model=base_name,
        library_name="transformers",
        pipeline_tag=TASK,
        tags=["temporal-video-grounding", "on-policy-distillation", "video", f"arxiv:{ARXIV}"],
        eval_results=list(_results(config, evaluated)) or None,
        **licence,
    )
    body = "\n\n".join(
        [
            f"# {data.model_name}",
            f"{base_name}, post-trained for {TASK_NAME} by on-policy distillation from"
            f" {teacher_name} ([arXiv {ARXIV}](https://arxiv.org/abs/{ARXIV})): given a video"
            " and a sentence, it says when that happens.",
            "## How to load it",
            _LOADING,
            f"It was asked with {_question(config)}, and is to be asked so again.",
            "## How well it does",
            _metrics(evaluated, config),
            "## How it was made",
            _rounds(run, version),
            _data(run, version, config),
            _sources(
                run, version, content, model_name(base), " + ".join(map(model_name, teachers))
            ),
            "Settings of the last round:",
            "```json\n" + json.dumps(_settings(config), indent=1) + "\n```",
            "## Licence",
            f"That of the base model ({licence['license']})."
            if licence["license"] != "other"
            else "That of the base model, whose folder names none.",
        ]
    )
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n"))


def hub_name(folder: Path) -> str:
    """Name a model as the hub does (`Qwen/Qwen3-VL-8B-Instruct`); elsewhere, its folder."""
    cached = cached_model(folder)
    return folder.name if cached is None else cached.repo


def _question(config: Mapping[str, Any]) -> str:
    prompt = config.get("prompt", {})
    if prompt.get("text"):
        return f"`{' '.join(prompt['text'].split())}`"
    return f"the template `{prompt.get('template')}`"


def _licence(base: Path) -> dict[str, Any]:
    """Read what the base's own card says; it has to be said on, also where that is nothing."""
    from huggingface_hub import ModelCard

    named = None
    if (base / "README.md").is_file():
        with contextlib.suppress(OSError, ValueError):  # a card that is none
            named = ModelCard.load(base / "README.md").data.get("license")
    if isinstance(named, str) and named != "other":
        return {"license": named}
    return {"license": "other", "license_name": "as-the-base-model"}


def _evaluated(run: Run, version: int) -> list[Evaluated]:
    """Measure the base and the policy, where they have answers."""
    evaluated = []
    for number in (0, version):
        try:
            answers: Answers = of_policy(run, number)
        except VideoOPDError:  # it was not evaluated
            continue
        evaluated.append(Evaluated(number, next(groups(answers))))
    return evaluated


def _results(config: Mapping[str, Any], evaluated: list[Evaluated]) -> Iterator[Any]:
    from huggingface_hub import EvalResult

    name = Path(config["data"]["eval"]).stem
    for protocol, metric, title, key in _keys():
        for item in evaluated[-1:] if evaluated and evaluated[-1].policy_version else []:
            value = item.group.metrics[key].value
            if value is None:  # rows from before the protocol was kept
                continue
            yield EvalResult(
                task_type=TASK,
                task_name=TASK_NAME,
                dataset_type=name,
                dataset_name=name,
                dataset_split="eval",
                metric_type=metric,
                metric_name=f"{title} ({protocol})",
                metric_value=round(value, 4),
                metric_args={"protocol": protocol, "examples": item.group.examples},
            )


def _keys() -> Iterator[tuple[str, str, str, str]]:
    """Protocol, metric, what people call it, its name among the metrics of a group."""
    for name in PROTOCOLS:
        for metric, title in PROTOCOLS[name].metrics.items():
            yield name, metric, title, f"{name}_{metric}"


def _metrics(evaluated: list[Evaluated], config: Mapping[str, Any]) -> str:
    if not evaluated:
        return "It was not evaluated."
    names = ["the base" if item.policy_version == 0 else "this model" for item in evaluated]
    lines = [f"| protocol | metric | {' | '.join(names)} |", "|---" * (2 + len(evaluated)) + "|"]
    for protocol, _, title, key in _keys():
        cells = [_cell(item.group.metrics[key]) for item in evaluated]
        lines.append(f"| {protocol} | {title} | {' | '.join(cells)} |")
    for name in PROTOCOLS:
        cells = [_cell(item.group.metrics[no_span(name)]) for item in evaluated]
        lines.append(f"| {name} | answers without a span | {' | '.join(cells)} |")
    group = evaluated[-1].group
    rules = " ".join(f"{name}: {PROTOCOLS[name].about}." for name in PROTOCOLS)
    lines.append(
        f"\nGreedy answers to {group.examples:,} sentences on {group.videos:,} videos of"
        f" `{Path(config['data']['eval']).name}`, with 95 % intervals over videos. {rules} An"
        " answer without a span is IoU 0."
    )
    return "\n".join(lines)


def _cell(estimate: Estimate) -> str:
    if estimate.value is None:  # answers from before the protocol was kept
        return ABSENT
    if estimate.low is None:
        return f"{estimate.value:.3f}"
    return f"{estimate.value:.3f} ({estimate.low:.3f} to {estimate.high:.3f})"


def _rounds(run: Run, version: int) -> str:
    rows = run.updates().filter(pl.col("policy_version") <= version).sort("policy_version")
    lines = ["| round | objective | rollouts | tokens | steps | |", "|---|---|---|---|---|---|"]
    for row in rows.collect().iter_rows(named=True):
        notes = [row["stopped_early"]]
        if row["optimizer_restarted"] is not None:
            notes.append(f"the optimiser began anew: {row['optimizer_restarted']}")
        said = "; ".join(note for note in notes if note)
        lines.append(
            f"| {row['policy_version']} | {row['objective']} | {row['rollouts']:,} |"
            f" {row['tokens']:,} | {len(row['steps'])} | {said} |"
        )
    return "\n".join(lines)


def _data(run: Run, version: int, config: Mapping[str, Any]) -> str:
    drawn = run.draws().filter(pl.col("policy_version") < version).select("example_id").unique()
    examples = run.examples().join(drawn, on="example_id", how="semi").collect()
    sources = ", ".join(f"{name} ({count:,})" for name, count in
                        examples.group_by("source").len().sort("source").iter_rows())  # fmt: skip
    return (
        f"Drawn from `{Path(config['data']['train']).name}`: {examples.height:,} sentences on"
        f" {examples['video_path'].n_unique():,} videos; by source: {sources}."
    )


def _sources(run: Run, version: int, content: Mapping[str, Any], base: str, teacher: str) -> str:
    update = run.updates().filter(pl.col("policy_version") == version).collect().row(0, named=True)
    return "\n".join(
        [
            "| | |",
            "|---|---|",
            f"| base | {base}, weights `{content['student']['weights_hash']}` |",
            f"| teacher | {teacher}, weights `{update['teacher_hash']}` |",
            f"| rounds | {version} |",
            f"| this policy | weights `{update['policy_hash']}` |",
            f"| run | `{run.run_id}`, config `{update['config_hash']}`,"
            f" code `{update['git_commit']}` |",
        ]
    )


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what is not set, and folders of the machine that it ran on."""
    return {
        section: {k: v for k, v in config[section].items() if v is not None and k != "cache"}
        for section in SECTIONS
        if section in config
    }


_LOADING = """```python
from transformers import AutoModelForImageTextToText, AutoProcessor

folder = "."  # this folder, or its name on the hub
model = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto")
processor = AutoProcessor.from_pretrained(folder)
```"""
