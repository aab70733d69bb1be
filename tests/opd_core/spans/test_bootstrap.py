"""The bootstrap against every resample there is, and the intervals against known truths."""

import math
from collections.abc import Iterable
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opd_core.spans.bootstrap import Estimate, estimates, resampled_means
from tests.known import known


def every_resample(values: np.ndarray, clusters: list[str]) -> np.ndarray:
    """[C^C, M] the mean of each equally likely draw of C clusters, sentence by sentence."""
    names = sorted(set(clusters))
    means = []
    for draw in product(names, repeat=len(names)):
        rows = [v for name in draw for v, c in zip(values, clusters, strict=True) if c == name]
        means.append(np.mean(rows, axis=0))
    return np.array(means)


VALUES = np.array(
    [[0.9, 1.0], [0.1, 0.0], [0.5, 1.0], [0.3, 0.0], [0.7, 1.0], [0.2, 0.0], [0.4, 1.0]]
)
CLUSTERS = ["a", "a", "b", "c", "c", "c", "d"]


def test_resampled_means_are_those_of_every_resample() -> None:
    names = sorted(set(CLUSTERS))
    total = np.array([[VALUES[i] for i, c in enumerate(CLUSTERS) if c == n] for n in names],
                     dtype=object)  # fmt: skip
    sums = np.array([np.sum(rows, axis=0) for rows in total])
    sizes = np.array([float(len(rows)) for rows in total])
    drawn = np.array([[draw.count(n) for n in names] for draw in product(names, repeat=4)])
    ours = resampled_means(sums, sizes, drawn)
    assert ours == pytest.approx(every_resample(VALUES, CLUSTERS))


def test_intervals_are_the_quantiles_of_all_resamples() -> None:
    """256 equally likely resamples of four videos; ours are 40,000 of them."""
    exact = every_resample(VALUES, CLUSTERS)
    found = estimates(VALUES, CLUSTERS, resamples=40_000)
    for column, estimate in enumerate(found):
        assert estimate.value == pytest.approx(VALUES[:, column].mean())
        # The quantile of a discrete distribution: within the neighbouring resamples' values.
        for end, tail in ((estimate.low, 0.025), (estimate.high, 0.975)):
            low, high = np.quantile(exact[:, column], [tail - 0.005, tail + 0.005])
            assert low - 1e-12 <= end <= high + 1e-12
    below = (exact - 0.3 <= 0).mean(0)
    for estimate, share in zip(estimates(VALUES - 0.3, CLUSTERS, 40_000), below, strict=True):
        assert abs(estimate.share_not_above_zero - share) < 5 * math.sqrt(0.25 / 40_000)


def test_without_clusters_it_is_the_ordinary_bootstrap() -> None:
    """Three values: 27 resamples, of which the means have known probabilities."""
    values = np.array([[0.0], [0.0], [1.0]])
    (found,) = estimates(values, ["a", "b", "c"], resamples=30_000)
    assert found.share_not_above_zero == pytest.approx(8 / 27, abs=0.015)
    assert (found.low, found.high) == (0.0, 1.0), "P(mean = 1) is 1/27, above 2.5 %"


def width(estimate: Estimate) -> float:
    return known(estimate.high) - known(estimate.low)


def test_sentences_of_a_video_are_no_independent_evidence() -> None:
    generator = np.random.default_rng(1)
    videos = generator.random(30)
    values = np.repeat(videos, 8)[:, None]
    together = estimates(values, [str(i // 8) for i in range(240)])[0]
    apart = estimates(values, [str(i) for i in range(240)])[0]
    assert together.value == apart.value
    ratio = width(together) / width(apart)
    assert ratio == pytest.approx(math.sqrt(8), rel=0.15)


def test_an_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for sample in range(300):
        values = (generator.random((80, 1)) < 0.4).astype(float)
        (found,) = estimates(values, list(range(80)), resamples=300, seed=sample)
        covered += known(found.low) <= 0.4 <= known(found.high)
    assert 0.90 <= covered / 300 <= 0.985


def test_one_video_gives_no_interval() -> None:
    assert estimates(np.array([[0.5], [1.0]]), ["a", "a"]) == [Estimate(0.75, None, None)]


def test_equal_values_leave_no_doubt() -> None:
    (found,) = estimates(np.zeros((4, 1)), list("abcd"))
    assert found == Estimate(0.0, 0.0, 0.0, 1.0)


def test_no_rows_and_wrong_labels_are_refused() -> None:
    for values, labels in ((np.zeros((0, 1)), []), (np.zeros((2, 1)), ["a"])):
        with pytest.raises(ValueError, match="rows of values"):
            estimates(values, labels)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_order_of_rows_gives_the_same_numbers(data: st.DataObject) -> None:
    rows = data.draw(
        st.lists(st.tuples(st.sampled_from("abcde"), st.floats(0, 1)), min_size=1, max_size=20)
    )
    order = data.draw(st.permutations(range(len(rows))))

    def found(indices: Iterable[int]) -> list[Estimate]:
        values = np.array([[rows[i][1]] for i in indices])
        return estimates(values, [rows[i][0] for i in indices], resamples=100, seed=3)

    (one,), (other,) = found(range(len(rows))), found(order)
    assert one.value == pytest.approx(other.value)
    if one.low is not None and one.high is not None:
        assert (one.low, one.high) == pytest.approx((other.low, other.high))
        assert one.low - 1e-12 <= known(one.value) + 1e-12 and one.high >= one.low
        values = [v for _, v in rows]
        assert min(values) - 1e-9 <= one.low and one.high <= max(values) + 1e-9
