"""The benches run; what they measure is for `make bench`."""

from flows.bench.accelerator import accelerator_rows
from flows.bench.interleaved import at_least, at_most, medians


def test_the_accelerators_script_runs_on_a_cpu_in_the_small() -> None:
    rows = list(accelerator_rows(repetitions=1))
    assert [row.name.rsplit(", ", 1)[1].split(":")[0] for row in rows] == [
        "sample", "score", "update",
    ]  # fmt: skip
    for row in rows:
        assert row.value > 0
        assert row.details["device"] == "CPU"
        assert row.details["MFU of the language model, tree"] is None, "no peak is known of a CPU"


def test_alternatives_take_turns_after_one_unmeasured_turn() -> None:
    calls = []
    seconds = medians({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    assert "".join(calls) == "abababab"
    assert seconds.keys() == {"a", "b"}


def test_a_promise_is_met_or_not() -> None:
    assert at_least("x", 2.0, 2.0).met and not at_least("x", 1.9, 2.0).met
    assert at_most("x", 2.0, 2.0).met and not at_most("x", 2.1, 2.0).met
