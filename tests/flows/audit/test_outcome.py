"""What an audit leaves beside the run: what it said, whole, and when nothing could be left."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.audit import outcome
from flows.audit.outcome import AUDIT_FILE, Auditing
from flows.audit.walk import Depth, Verdict
from flows.commands.ask import print_audit
from opd_core.types import VideoOPDError
from storage.audit.links import Checked
from storage.runs.run import Run
from tests.storage.storage_factories import new_run

VERDICTS = (
    Verdict("one", Checked(3, "checkpoints", ("a note",), ("policy 1 was let go",)), None),
    Verdict("two", None, "row 7: hash is 'a' and should be 'b'"),
)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return new_run(tmp_path)


def test_it_is_read_as_it_was_kept(run: Run) -> None:
    assert outcome.last(run.path) is None
    depth = Depth(videos=0.5, deep=0.1, seed=3)
    Auditing(run, depth).keep(VERDICTS)
    kept = outcome.last(run.path)
    assert kept is not None
    assert (kept.verdicts, kept.depth, kept.round) == (VERDICTS, depth, None)
    assert [verdict.link for verdict in kept.broken] == ["two"]
    assert kept.let_go == 1
    assert kept.changed(run) == []


def test_a_damaged_one_says_what_to_do(run: Run) -> None:
    (run.path / AUDIT_FILE).write_text('{"at": ')
    with pytest.raises(VideoOPDError, match=r"audit\.json is damaged; remove it"):
        outcome.last(run.path)


def test_a_table_that_is_gone_is_for_the_audit_to_tell(run: Run) -> None:
    (run.path / "tables" / "selections.lance").rename(run.path / "elsewhere")
    Auditing(run, Depth()).keep(VERDICTS)
    kept = outcome.last(run.path)
    assert kept is not None and kept.table_versions["selections"] is None


def test_where_nothing_can_be_written_the_audit_says_so_and_its_verdict(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    (run.path / AUDIT_FILE).mkdir()  # no file can be put there, by nobody
    print_audit(run, Depth(videos=0.0), "text")
    said = capsys.readouterr()
    assert "the outcome is not kept" in said.err
    assert "rollouts are of exactly the parent's weights" in said.out
