"""What `videoopd diff`, `export` and `audit` print."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.console.progress import is_quiet
from flows.console.report import console, cut, number, table
from flows.run_tokenizer import texts_of as texts_of  # where docs/ask.md has it
from opd_core.types import VideoOPDError

if TYPE_CHECKING:
    from rich.table import Table

    from flows.audit.outcome import Auditing
    from flows.audit.walk import Depth, Verdict
    from storage.asking.diff import Diff
    from storage.runs.run import Run

HUB_FOLDER = "hub-folder"


def print_diff(a: Run, b: Run, format: str) -> None:
    """Print the inputs that differ, and numbers on the same examples."""
    from storage.asking.diff import diff

    difference = diff(a, b)
    if format == "json":
        content = asdict(difference)
        for row, written in zip(difference.numbers, content["numbers"], strict=True):
            written["difference"] = row.difference
        _print_json(content)
        return
    out = console()
    print(f"A  {difference.a}\nB  {difference.b}\n")
    out.print(_inputs(difference) if difference.inputs else "no input differs")
    shared = [name for name in difference.same if not name.startswith("config ")]
    print(f"the same: {', '.join(shared)}, {len(difference.same) - len(shared)} config keys\n")
    out.print(_numbers(difference))


def _inputs(difference: Diff) -> Table:
    made = table("input", "A", "B")
    for row in difference.inputs:
        made.add_row(row.name, _shown(row.a), _shown(row.b))
    return made


def _numbers(difference: Diff) -> Table:
    made = table("on what both have", numbers=("", "A", "B", "B - A", "largest"))
    for row in difference.numbers:
        values = (row.a, row.b, row.difference, row.largest)
        cells = [number(value, ".4g") for value in values]
        made.add_row(row.name, f"{row.count:,} {row.of}", *cells)
    return made


def export(run: Run, to: str, out: Path, names: Sequence[str], replace: bool = False) -> None:
    """Write tables and views, or a policy, into a new folder, and say how to open it."""
    if to == HUB_FOLDER:
        _export_policy(run, out, names, replace)
        return
    from storage.asking.export import DEFAULT
    from storage.asking.export import export as write

    rows = write(run, to, out, names or DEFAULT, texts_of(run), replace)
    for name, count in rows.items():
        print(f"wrote {count:,} rows of {name} to {out}")
    first = next(name for name, count in rows.items() if count)
    opened = {
        "hf": f'datasets.load_dataset("{out}", "{first}")',
        "parquet": f'polars.read_parquet("{out / first}.parquet")',
        "jsonl": f'polars.read_ndjson("{out / first}.jsonl")',
    }
    print(f"open with {opened[to]}")


def _export_policy(run: Run, out: Path, names: Sequence[str], replace: bool) -> None:
    from flows.commands.hub_folder import write_hub_folder

    if replace:
        raise VideoOPDError(f"--to {HUB_FOLDER} replaces no folder; give --out a new one")
    if names:
        raise VideoOPDError(f"--to {HUB_FOLDER} writes a policy, no table; leave out --table")
    version = write_hub_folder(run, out)
    print(f"policy {version}: {out}, with a model card in README.md")
    print(f'open with transformers.AutoModelForImageTextToText.from_pretrained("{out}")')


def print_audit(run: Run, depth: Depth, format: str) -> int:
    """Print each link with its count; returns the exit code, 1 when one is broken and named."""
    from flows.audit.outcome import Auditing
    from flows.audit.walk import audit

    auditing = Auditing(run, depth)
    verdicts = []
    for verdict in audit(run, depth):
        verdicts.append(verdict)
        if format == "json" or (is_quiet() and not verdict.broken):
            continue
        if verdict.checked is None:
            print(f"✗ {verdict.link}: {verdict.broken}")
            continue
        counted = f"{verdict.checked.count:,} {verdict.checked.of}"
        print(f"✓ {verdict.link:<54}{counted:>22}")
        for note in verdict.checked.notes:
            print(f"    {note}")
        for gone in verdict.checked.let_go:
            print(f"  ? {gone}")
    _keep(auditing, verdicts)
    broken = [verdict for verdict in verdicts if verdict.broken]
    if format == "json":
        _print_json({"run": str(run.path), "round": run.round, "whole": not broken,
                     "links": [asdict(verdict) for verdict in verdicts]})  # fmt: skip
    elif broken:
        sys.stdout.flush()
        more = f" ({len(broken) - 1} more)" if len(broken) > 1 else ""
        print(f"videoopd: the first broken link of {run.path} is: {broken[0].link}{more}",
              file=sys.stderr)  # fmt: skip
    else:
        open_ends = sum(len(v.checked.let_go) for v in verdicts if v.checked)
        end = f"; {open_ends} parts (?) were let go and are not proven" if open_ends else ""
        print(f"all {len(verdicts)} links hold{end}")
    return 1 if broken else 0


def _keep(auditing: Auditing, verdicts: Sequence[Verdict]) -> None:
    """Leave the outcome beside the run, which may be a copy that cannot be written."""
    try:
        auditing.keep(verdicts)
    except (VideoOPDError, OSError) as error:
        print(f"videoopd: the outcome is not kept: {error}", file=sys.stderr)


def _shown(value: Any) -> str:
    """A value as text; of a hash, its beginning."""
    text = value if isinstance(value, str) else json.dumps(value)
    return cut(text, 19) if len(text) == 64 and text.isalnum() else text


def _print_json(content: Any) -> None:
    print(json.dumps(content, indent=1))
