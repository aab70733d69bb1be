"""The tiny world's annotations, rewritten as each data set would have them and imported: the same
examples, to the id."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows import cli
from opd_core.annotations.timelens import read_timelens
from opd_core.extensions import TEMPLATES
from opd_core.tinyworld.world import World
from opd_core.types import GroundingExample

Examples = list[GroundingExample]


def clock(value: float, point: str = ".") -> str:
    whole, milli = divmod(round(value * 1000), 1000)
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}{point}{milli:03d}"


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "\n".join(json.dumps(row) for row in rows).encode()


def array(rows: list[dict[str, Any]]) -> bytes:
    return json.dumps(rows, indent=2).encode()


def parquet(rows: list[dict[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def table(examples: Examples, delimiter: str, header: bool, encoding: str, comma: bool) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter)
    if header:
        writer.writerow(["video", "start", "end", "query"])
    for e in examples:
        ends = [f"{end:.3f}".replace(".", "," if comma else ".") for end in e.span]
        writer.writerow([e.video_path, *ends, e.query])
    return text.getvalue().encode(encoding)


def row(e: GroundingExample, **rest: object) -> dict[str, Any]:
    return {"video": e.video_path, "query": e.query} | rest


def verl(e: GroundingExample, truth: object) -> dict[str, Any]:
    question = TEMPLATES["video-opd"].text.format(query=e.query)
    return {
        "data_source": "tvg",
        "prompt": [{"role": "user", "content": "<video>" + question}],
        "videos": [{"type": "video", "video": f"file:///x/{e.video_path}", "fps": 2.0}],
        "reward_model": {"style": "rule", "ground_truth": truth},
        "extra_info": {"split": "train", "index": 0},
    }


def swift(e: GroundingExample) -> dict[str, Any]:
    question = TEMPLATES["timelens"].text.format(query=e.query)
    answer = f"The event happens in {e.span.start} - {e.span.end} seconds"
    return {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ],
        "videos": ["C:\\data\\" + e.video_path.replace("/", "\\")],
    }


def factory(e: GroundingExample) -> dict[str, Any]:
    chat = swift(e)["messages"]
    who = {"user": "human", "assistant": "gpt"}
    return {
        "conversations": [{"from": who[m["role"]], "value": m["content"]} for m in chat],
        "videos": [e.video_path],
    }


def time_r1(e: GroundingExample) -> dict[str, Any]:
    empty = {"video_start": None, "video_end": None, "qid": "x"}
    named = {"video": e.video_path, "duration": e.duration, "sentence": e.query}
    return named | {"timestamp": list(e.span)} | empty


FORMS: dict[str, tuple[str, Callable[[Examples], bytes]]] = {
    "jsonl": ("jsonl", lambda es: lines([row(e, start=e.span[0], end=e.span[1]) for e in es])),
    "text": (
        "jsonl",
        lambda es: lines([row(e, span=[str(end) for end in e.span]) for e in es]),
    ),
    "clocks": (
        "jsonl",
        lambda es: lines([row(e, start=clock(e.span[0]), end=clock(e.span[1], ",")) for e in es]),
    ),
    "gzip": ("jsonl", lambda es: gzip.compress(array([row(e, span=list(e.span)) for e in es]))),
    "Time-R1": ("video-opd", lambda es: array([time_r1(e) for e in es])),
    "verl": ("video-opd", lambda es: parquet([verl(e, f"{e.span[0]} to {e.span[1]}") for e in es])),
    "verl, pairs": ("video-opd", lambda es: parquet([verl(e, list(e.span)) for e in es])),
    "ms-swift": ("video-opd", lambda es: lines([swift(e) for e in es])),
    "LLaMA-Factory": ("video-opd", lambda es: array([factory(e) for e in es])),
    "qvhighlights": (
        "qvhighlights",
        lambda es: lines(
            [{"vid": e.video_path, "query": e.query, "relevant_windows": [e.span]} for e in es]
        ),
    ),
    "charades-sta": (
        "charades-sta",
        lambda es: "\n".join(
            f"{e.video_path} {e.span[0]} {e.span[1]}##{e.query}" for e in es
        ).encode(),
    ),
    "commas": ("csv", lambda es: table(es, ",", True, "utf-8", False)),
    "semicolons": ("csv", lambda es: table(es, ";", True, "utf-8-sig", True)),
    "tabs": ("csv", lambda es: table(es, "\t", False, "utf-16", True)),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_same_annotations_in_another_form_are_the_same_examples(
    tiny_world: World, tmp_path: Path, form: str
) -> None:
    found = list(read_timelens(tiny_world.train, "train"))[:24]
    examples = [e for e in found if isinstance(e, GroundingExample)]
    assert len(examples) == len(found) > 8
    format, write = FORMS[form]
    file, out = tmp_path / "in", tmp_path / "out.jsonl"
    file.write_bytes(write(examples))
    videos = tiny_world.videos
    words = ["import", format, str(file), "--videos", str(videos), "--out", str(out), "--jobs", "1"]
    assert cli.main([*words, "--source", examples[0].source]) == 0
    assert list(read_timelens(out, "train")) == examples
