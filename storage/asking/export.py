"""A run's tables and views as a folder that other programs open.

`parquet` and `jsonl`: one file a table. `hf`: what `datasets.load_dataset(FOLDER, TABLE)` opens:
Parquet files by table and split, and a card (README.md) that says which is which, what each column
means, and which run, weights and code it is of.

Written beside the folder and renamed: it is there whole or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from opd_core.types import VideoOPDError
from storage.asking.described import meanings
from storage.files import new_folder
from storage.runs import run_folder
from storage.tables.schemas import TABLES
from storage.tables.views import VIEWS, Texts

if TYPE_CHECKING:
    import polars as pl

    from storage.runs.run import Run

FORMATS = ("parquet", "jsonl", "hf")
DEFAULT = ("trajectories",)
NAMES = (*TABLES, *VIEWS)
_BY_US = "by Video-OPD"


def export(
    run: Run,
    to: str,
    out: Path,
    names: Sequence[str] = DEFAULT,
    texts: Texts | None = None,
    replace: bool = False,
) -> dict[str, int]:
    """Writes the named tables and views into the new folder `out`; table -> rows written.

    With `replace`, an export that is there is replaced, by the whole new one at once. Raises
    `VideoOPDError` for an unknown name, a folder that holds something (anything but an export,
    with `replace`), and where there is no row to write.
    """
    if to not in FORMATS:
        raise VideoOPDError(f"there is no format {to!r}; they are: {', '.join(FORMATS)}")
    names = list(dict.fromkeys(names))
    for name in names:
        if name not in NAMES:
            raise VideoOPDError(f"there is no table {name!r}; the tables are: {', '.join(NAMES)}")
    with new_folder(out, _own_names if replace else None, ", or add --force") as folder:
        rows, files = {}, {}
        for name in names:
            frame = _frame(run, name, texts)
            rows[name] = int(frame.select(_count()).collect().item())
            files[name] = _write(frame, name, to, folder)
        if not any(rows.values()):
            raise VideoOPDError(
                f"run {run.path} has no rows of {', '.join(names)} yet; run a round first"
            )
        if to == "hf":
            (folder / "README.md").write_text(_card(run, rows, files, texts))
    return rows


def _own_names(out: Path) -> set[str]:
    """What an export may have written into a folder."""
    ours = {f"{name}.{end}" for name in NAMES for end in ("parquet", "jsonl")}
    card = out / "README.md"
    if card.is_file() and _BY_US in card.read_text(errors="replace"):
        ours |= {"README.md", "data"}
    return ours


def _frame(run: Run, name: str, texts: Texts | None) -> pl.LazyFrame:
    if name == "trajectories":
        return run.trajectories()
    return run.tokens(texts) if name == "tokens" else run.scan(name)


def _count() -> pl.Expr:
    import polars as pl

    return pl.len()


def _write(frame: pl.LazyFrame, name: str, to: str, folder: Path) -> dict[str, list[str]]:
    """split -> files, relative to `folder`; one split unless the rows name theirs."""
    import polars as pl

    if to == "jsonl":
        frame.sink_ndjson(folder / f"{name}.jsonl")
        return {"train": [f"{name}.jsonl"]}
    if to == "parquet":
        frame.sink_parquet(folder / f"{name}.parquet", compression="zstd")
        return {"train": [f"{name}.parquet"]}
    parts = {"train": frame}
    if "split" in frame.collect_schema():
        splits = frame.select(pl.col("split").unique().sort()).collect().to_series().to_list()
        parts = {split: frame.filter(pl.col("split") == split) for split in splits}
    files: dict[str, list[str]] = {}
    for split, part in parts.items():
        path = Path("data", name, f"{split}.parquet")
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        part.sink_parquet(folder / path, compression="zstd")
        files[split] = [path.as_posix()]
    return files


def _card(
    run: Run,
    rows: Mapping[str, int],
    files: Mapping[str, Mapping[str, Sequence[str]]],
    texts: Texts | None,
) -> str:
    """The dataset card: YAML that `load_dataset` reads, then what a person wants to know."""
    content = run_folder.read(run.path)
    lines = ["---", "configs:"]
    for number, (name, splits) in enumerate(files.items()):
        if not rows[name]:
            continue
        lines += [f"- config_name: {name}"] + (["  default: true"] if number == 0 else [])
        lines.append("  data_files:")
        for split, paths in splits.items():
            lines += [f"  - split: {split}", "    path:", *(f"    - {path}" for path in paths)]
    lines += ["tags:", "- video", "- temporal-grounding", "- on-policy-distillation", "---", ""]
    as_of = "" if run.round is None else f", as of round {run.round}"
    lines += [
        "# Trajectories of on-policy distillation",
        "",
        f"Exported from run `{run.run_id}`{as_of} {_BY_US}. Base student"
        f" `{content['student']['weights_hash']}`, teacher `{run_folder.teacher_hash(content)}`,"
        f" code `{content['git_commit']}`. Absent is null; times are seconds, log-probabilities"
        " natural logarithms.",
        "",
    ]
    for name, count in rows.items():
        about = VIEWS.get(name) or TABLES[name].description
        lines += [f"## {name}: {count:,} rows", "", about, ""]
        described = meanings(name)
        schema = _frame(run, name, texts).collect_schema()
        lines += ["| column | type | |", "|---|---|---|"]
        lines += [f"| {c} | {kind} | {described.get(c, '')} |" for c, kind in schema.items()]
        lines.append("")
    return "\n".join(lines)
