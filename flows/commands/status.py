"""`videoopd status`: what a run holds and still lacks, for people as lines and tables."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.table import Table

from flows.commands.run_state import Status, status_of
from flows.console.progress import is_quiet
from flows.console.report import console, number, size_text, table
from opd_core.spans.protocols.known import PROTOCOLS

if TYPE_CHECKING:
    from storage.runs.run import Run


def print_status(run: Run, config: str | None = None, as_json: bool = False) -> None:
    """Print the state of a run; `config` is the file that it was found by."""
    status = status_of(run, config)
    if as_json:
        print(json.dumps(asdict(status), indent=1))
    elif is_quiet():
        print(f"round {status.round}: {status.missing}")
    else:
        print("\n".join((*_now(status), *_reruns(status))))
        console().print(_policies_table(status), _tables_table(status))
        for policy in status.policies:
            if policy.let_go:
                print(f"policy {policy.policy_version}: its weights were {policy.let_go}")
        if status.left_out:
            print("quarantined:")
        for item in status.left_out:
            print(f"  {item.count:>6,}  {item.stage}: {item.reason()}")


def _now(status: Status) -> Iterator[str]:
    as_of = "" if status.as_of_round is None else f" as of round {status.as_of_round}"
    size = size_text(status.bytes)
    yield f"run       {status.run}{as_of}  ({size}, begun {status.created_at[:19]})"
    yield f"policy    {status.state.policy_version}  (newest committed)"
    given_up = f"; {status.state.quarantined:,} quarantined" if status.state.quarantined else ""
    yield f"round {status.round:<3} {status.missing}{given_up}"
    yield f"models    student {status.student}, teacher {status.teacher}"
    yield f"data      {status.data.line()}"
    yield f"frames    {status.frames}"
    if status.goes_on:
        yield f"continue  {status.goes_on}"


def _reruns(status: Status) -> Iterator[str]:
    """Say what is stale, with the command that runs it again, and which takes superseded what."""
    for stale in status.stale:
        yield f"stale     {stale.why}; run again: {stale.command}"
    if status.stale_rounds:
        rounds = ", ".join(map(str, status.stale_rounds))
        first = status.stale_rounds[0] - 1
        yield f"stale     all of round {rounds}: update of round {first} has to be run again first"
    if status.stale and status.goes_on:
        yield f"          all of it: videoopd stage stale {status.config}"
    for take in status.takes:
        yield (
            f"rerun     {take.name} ({take.why}): "
            f"{take.superseded:,} rows superseded, {take.written:,} written"
        )


def _policies_table(status: Status) -> Table:
    shown = {
        "mIoU": "strict_miou",
        "R1@0.3": "strict_r1_30",
        "R1@0.5": "strict_r1_50",
        "R1@0.7": "strict_r1_70",
        **{f"{name} {title}": metric for name, title, metric in _other_protocols()},
    }
    headings = ("policy", "examples", *shown, "rollouts trained on", "objective")
    made = table(numbers=headings, title="policies")
    made.add_column("tags")
    for policy in status.policies:
        cells = [number(policy.metrics.get(metric)) for metric in shown.values()]
        trained = number(policy.rollouts, "", absent="")
        examples = number(policy.metrics.get("examples"), ",.0f")
        weights = "let go" if policy.let_go else ", ".join(policy.tags)
        words = (policy.objective or "", weights)
        made.add_row(str(policy.policy_version), examples, *cells, trained, *words)
    return made


def _other_protocols() -> Iterator[tuple[str, str, str]]:
    """Name, title and metric of one number a protocol: R1@0.5, or mIoU where it does not count
    that."""
    for name in PROTOCOLS:
        if name != "strict":
            metrics = PROTOCOLS[name].metrics
            end = "r1_50" if "r1_50" in metrics else "miou"
            yield name, metrics[end], f"{name}_{end}"


def _tables_table(status: Status) -> Table:
    made = table("table", numbers=("rows", "on disk"), title="tables")
    made.add_column("")
    for state in status.tables:
        made.add_row(state.name, f"{state.rows:,}", size_text(state.bytes), state.about)
    return made
