from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass, replace
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from opd_core.types import Rollout, Span, TeacherScore, VideoOPDError
from storage.tables.lance_tables import Tables
from storage.tables.records import from_rows, to_table
from storage.tables.schemas import TABLES, TableSpec
from tests.storage.storage_factories import one_of_each, rollout, score, update

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
LOGPROBS = st.floats(max_value=0, allow_nan=False, allow_infinity=False, width=32)
SIMPLE = {
    str: st.text(), int: st.integers(-(2**63), 2**63 - 1), float: NUMBERS, bool: st.booleans()
}  # fmt: skip
T = 2


def values(annotation: Any) -> st.SearchStrategy[Any]:
    """Anything a field may hold. Lists have T entries, since parallel ones must agree."""
    if NoneType in get_args(annotation):
        return st.none() | values(next(a for a in get_args(annotation) if a is not NoneType))
    if annotation is Span:
        return st.builds(Span, NUMBERS, NUMBERS)
    if get_origin(annotation) is Sequence:
        inner = get_args(annotation)[0]
        simple = {int: st.integers(-(2**31), 2**31 - 1), float: LOGPROBS}
        return st.tuples(*[simple[inner] if inner in simple else values(inner)] * T)
    if isinstance(annotation, type) and is_dataclass(annotation):
        return records_of(annotation)
    return SIMPLE[annotation]


def records_of(record: type) -> st.SearchStrategy[Any]:
    hints = get_type_hints(record)
    return st.builds(record, **{f.name: values(hints[f.name]) for f in fields(record)})


@pytest.mark.parametrize("spec", TABLES.values(), ids=lambda spec: spec.name)
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_roundtrip(spec: TableSpec, data: st.DataObject) -> None:
    records = data.draw(st.lists(records_of(spec.record), max_size=3))
    if spec.name == "teacher_scores":  # both or neither
        records = [
            r if (r.topk_token_ids is None) == (r.topk_logprobs is None)
            else replace(r, topk_token_ids=None, topk_logprobs=None)
            for r in records
        ]  # fmt: skip
    if spec.name == "rollouts":  # whatever somebody sampled has its log-probs
        records = [
            replace(r, answered_by="truth") if r.sampling_logprobs is None else r for r in records
        ]
    assert from_rows(spec.record, to_table(spec, records)) == records


@pytest.mark.parametrize("name", TABLES)
def test_absent_stays_absent(name: str, tables: Tables) -> None:
    from tests.storage.storage_factories import provenance

    record = one_of_each()[name]
    assert tables.append(name, [record], provenance(name)) == 1
    assert tables.read(name, type(record)) == [record]


def test_ragged_lists_and_empty_ones_roundtrip() -> None:
    scores = [
        score(
            0,
            teacher_logprobs=(-1.0,),
            topk_token_ids=((7,),),
            topk_logprobs=((-0.5,),),
            tail_logprobs=None,
        ),
        score(1, topk_token_ids=None, topk_logprobs=None),
        score(2, teacher_logprobs=(), topk_token_ids=(), topk_logprobs=(), tail_logprobs=()),
        score(3),
    ]
    spec = TABLES["teacher_scores"]
    assert from_rows(spec.record, to_table(spec, scores)) == scores


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"sampling_logprobs": (-0.5, NAN)}, "sampling_logprobs holds NaN"),
        ({"sampling_logprobs": (-0.5, -INF)}, "holds an infinite number"),
        ({"sampling_logprobs": (-0.5, None)}, "holds a null inside a list"),
        ({"sampling_logprobs": None}, "sampling_logprobs is missing"),
        ({"sampling_logprobs": (-0.5,)}, "has 1 entries and completion_token_ids has 2"),
        ({"student_iou": NAN}, "student_iou holds NaN"),
        ({"student_iou": None}, "student_iou is missing"),
        ({"frame_timestamps": (0.0,)}, "frame_timestamps has 1 entries"),
        ({"teacher_logprobs": (-1e300, -1.0)}, "holds an infinite number"),
        ({"topk_token_ids": ((1,), (3, 4))}, "differ in shape"),
        ({"topk_token_ids": None}, "differ in shape"),
        ({"topk_logprobs": ((-1.0, NAN), (-1.0, -2.0))}, "holds NaN"),
        ({"tail_logprobs": (-1.0,)}, "tail_logprobs has 1 entries and teacher_logprobs has 2"),
    ],
    ids=str,
)
def test_a_broken_row_is_refused_with_its_id(changes: dict[str, Any], sentence: str) -> None:
    is_rollout = hasattr(rollout(), next(iter(changes)))
    make: Callable[..., Rollout | TeacherScore] = rollout if is_rollout else score
    table = "rollouts" if is_rollout else "teacher_scores"
    with pytest.raises(VideoOPDError) as caught:
        to_table(TABLES[table], [make(1), make(7, **changes)])
    assert sentence in str(caught.value)
    assert make(7).rollout_id in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nan_in_an_update_step_is_refused() -> None:
    broken = update(3)
    broken = replace(broken, steps=(broken.steps[0], replace(broken.steps[1], loss=float("nan"))))
    with pytest.raises(VideoOPDError, match="policy_version 3 is refused because steps holds NaN"):
        to_table(TABLES["updates"], [update(2), broken])


def test_the_wrong_type_names_its_column() -> None:
    with pytest.raises(Exception) as caught:
        to_table(TABLES["rollouts"], [rollout(seed="seven")])
    assert "'seed'" in "".join(caught.value.__notes__)
