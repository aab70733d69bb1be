"""The protocols on answers whose numbers can be counted by hand."""

import polars as pl
import pytest

from opd_core.extensions import TEMPLATES
from opd_core.registry import Registry
from opd_core.spans.metrics import duration_bucket, grounding_metrics, no_span, per_example, titles
from opd_core.spans.protocols.known import FIELDS, PROTOCOLS, judged
from opd_core.spans.protocols.protocol import Protocol
from opd_core.types import Judgement, Span
from storage.tables.columns import span_columns
from storage.tables.schemas import TABLES

TRUTH = (Span(2.0, 6.0), Span(20.0, 24.0))
ANSWERS = [
    "The event happens in 2.0 - 6.0 seconds",  # 1
    "The event happens in 2.0 - 4.0 seconds",  # 0.5 exactly
    "The event happens in 2.4 - 6.4 seconds",  # 3.6 / 4.4; rounded it is the truth
    "The event happens in 8.0 - 9.0 seconds, or in 2.0 - 6.0 seconds",  # the first span counts
    "The event happens in 20.0 - 24.0 seconds",  # the second window
    "The event happens in 2 seconds to 6 minutes",  # 2 - 360; TimeLens' reader: 2 - 6
    "2秒到6秒",  # TimeLens' reader: none
    "I do not know",
]


def rows() -> pl.LazyFrame:
    found = []
    for text in ANSWERS:
        row = judged(text, TEMPLATES["timelens"].parse_span(text), TRUTH)
        for name in ("predicted_span", "timelens_span"):
            span = row.pop(name) or (None, None)
            row |= dict(zip(span_columns(name), span, strict=True))
        row["judgements"] = row["judgements"] and [struct(j) for j in row["judgements"]]
        found.append(row)
    return pl.LazyFrame(found)


def struct(judgement: Judgement) -> dict[str, object]:
    return {name: getattr(judgement, name) for name in ("protocol", "start", "end", "iou")}


def test_each_protocol_on_the_same_answers() -> None:
    (found,) = grounding_metrics(rows()).collect().to_dicts()
    assert found["examples"] == 8
    best = (1 + 0.5 + 3.6 / 4.4 + 0 + 1 + 4 / 358 + 1 + 0) / 8
    assert found["strict_miou"] == found["qvhighlights_miou"] == pytest.approx(best)
    assert found["timelens_miou"] == pytest.approx((1 + 0.5 + 1 + 0 + 0 + 1 + 0 + 0) / 8)
    assert found["strict_r1_50"] == 4 / 8, "an IoU of exactly 0.5 does not count"
    assert found["qvhighlights_r1_50"] == 5 / 8, "here it does"
    assert found["timelens_r1_50"] == 4 / 8
    assert found["timelens_r1_70"] == 3 / 8
    assert found["strict_r1_70"] == found["qvhighlights_r1_70"] == 4 / 8
    assert found["parse_failures"] == 1 / 8 and found["timelens_parse_failures"] == 2 / 8


def test_a_number_over_rows_that_lack_it_is_null_and_no_mean_of_the_others() -> None:
    older = pl.when(pl.int_range(pl.len()) < 3)
    lacking = rows().with_columns(
        older.then(None).otherwise(pl.col(name)).alias(name)
        for name in ("timelens_start", "timelens_end", "timelens_iou")
    )
    (found,) = grounding_metrics(lacking).collect().to_dicts()
    (whole,) = grounding_metrics(rows()).collect().to_dicts()
    of_timelens = {name for name in whole if name.startswith("timelens")}
    assert len(of_timelens) == 5
    assert {name for name, value in found.items() if value is None} == of_timelens
    assert all(found[name] == whole[name] for name in set(whole) - of_timelens)


def test_a_protocol_is_a_record_and_all_else_follows() -> None:
    names = ["strict", "timelens", "qvhighlights"]
    assert list(PROTOCOLS) == names == list(FIELDS)
    metrics = ("miou", "r1_30", "r1_50", "r1_70")
    wanted = {f"{name}_{metric}" for name in names for metric in metrics}
    assert set(per_example()) == wanted | {no_span(name) for name in names}
    columns = {column.name for column in TABLES["evaluations"].columns}
    for span, iou in FIELDS.values():
        assert {iou, *span_columns(span)} <= columns


def test_protocols_that_share_columns_share_what_is_in_them() -> None:
    def kind(name: str) -> tuple[object, ...]:
        p = PROTOCOLS[name]
        return p.reader, p.rounding, p.windows, p.overlap

    kinds = {FIELDS[name]: kind(name) for name in PROTOCOLS}
    assert all(kinds[FIELDS[name]] == kind(name) for name in PROTOCOLS)


def covered(a: Span, b: Span) -> float:
    """The share of the true span that an answer covers."""
    return max(0.0, min(a.end, b.end) - max(a.start, b.start)) / (b.end - b.start)


OTHERS = {
    "cover": Protocol("cover", overlap=covered, thresholds=(0.5, 0.95), comparison=">"),
    "fives": Protocol(
        "fives", reader=lambda text: Span(1.0, 8.0) if "8" not in text else None,
        rounding=lambda span: Span(span.start // 5 * 5, span.end // 5 * 5), windows="first",
    ),
}  # fmt: skip


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two protocols of other packages beside our own."""
    names = dict.fromkeys((*PROTOCOLS, *OTHERS), "")
    protocols = Registry("videoopd.nobody", Protocol, names)
    monkeypatch.setattr(protocols, "_load", lambda name: OTHERS.get(name) or PROTOCOLS[name])
    for module in ("opd_core.spans.protocols.known", "opd_core.spans.metrics"):
        monkeypatch.setattr(f"{module}.PROTOCOLS", protocols)


def test_protocols_without_columns_of_their_own_are_in_judgements(others: None) -> None:
    by_hand = [1, 0.5, 3.6 / 4, 0, 1, 1, 1, 0]
    (found,) = grounding_metrics(rows()).collect().to_dicts()
    assert found["cover_miou"] == pytest.approx(sum(by_hand) / 8)
    assert found["cover_r1_50"] == 5 / 8 and found["cover_r1_95"] == 4 / 8
    assert not {"cover_r1_30", "cover_r1_70", "cover_parse_failures"} & set(found)
    assert found["fives_miou"] == pytest.approx(7 / 8 * 3 / 6), "0 - 5 against 2 - 6, but for one"
    assert found["fives_parse_failures"] == 1 / 8 and found["parse_failures"] == 1 / 8
    assert list(titles().values()) == ["mIoU", "R1@0.3", "R1@0.5", "R1@0.7", "R1@0.95"]
    (first, second) = rows().collect()["judgements"][0].to_list()
    assert first == {"protocol": "cover", "start": 2.0, "end": 6.0, "iou": 1.0}
    assert second == {"protocol": "fives", "start": 1.0, "end": 8.0, "iou": pytest.approx(0.5)}


def test_answers_of_before_a_package_was_installed_have_no_number(others: None) -> None:
    lacking = rows().collect()
    less = [list(value) for value in lacking["judgements"].to_list()]
    less[3] = less[3][1:]
    few = lacking.with_columns(pl.Series("judgements", less))
    (found,) = grounding_metrics(few.lazy()).collect().to_dicts()
    absent = {name for name, value in found.items() if value is None}
    assert absent == {"cover_miou", "cover_r1_50", "cover_r1_95"}
    none = lacking.with_columns(judgements=pl.lit(None, lacking.schema["judgements"]))
    (found,) = grounding_metrics(none.lazy()).collect().to_dicts()
    absent = {name for name, value in found.items() if value is None}
    assert absent == {name for name in found if name.startswith(("cover", "fives"))}


def test_without_other_packages_nothing_is_kept_there() -> None:
    assert judged(ANSWERS[0], None, TRUTH)["judgements"] is None


def test_a_length_at_a_limit_begins_the_next_bucket() -> None:
    seconds = pl.DataFrame({"s": [0.5, 29.9, 30.0, 59.9, 60.0, 119.0, 120.0, 299.0, 300.0, 4000.0]})
    assert seconds.select(duration_bucket(pl.col("s"))).to_series().to_list() == [
        "0-30 s", "0-30 s", "30-60 s", "30-60 s", "60-120 s", "60-120 s", "120-300 s", "120-300 s",
        "300 s and more", "300 s and more",
    ]  # fmt: skip
