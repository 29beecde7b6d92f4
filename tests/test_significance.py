"""The stated test against SciPy's own, and by simulation: equal truths, clear winners, power."""

from __future__ import annotations

import itertools
import statistics

import numpy as np
import pytest
from scipy import stats

from mae_bench.significance import (
    difference,
    margin,
    minimum_difference,
    pooled_p,
    tie_groups,
    welch_p,
)

Samples = list[list[float]]


def draw(
    means: list[float], seeds: int, generator: np.random.Generator, sd: float = 1.0
) -> Samples:
    return [generator.normal(mean, sd, seeds).tolist() for mean in means]


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("inits", [2, 3, 5, 8])
def test_equal_truths_are_one_group_in_95_percent(inits: int, seeds: int):
    noise = np.random.default_rng(0)
    one = [set(tie_groups(draw([30.0] * inits, seeds, noise))) == {"a"} for _ in range(800)]
    assert statistics.fmean(one) >= 0.95


def test_equal_truths_with_unequal_spreads_are_one_group_in_95_percent_of_pairs():
    noise = np.random.default_rng(1)
    found = [
        tie_groups([noise.normal(30, 3, 3).tolist(), noise.normal(30, 1, 3).tolist()])
        for _ in range(800)
    ]
    assert statistics.fmean(set(groups) == {"a"} for groups in found) >= 0.95


@pytest.mark.parametrize(("seeds", "gap", "share"), [(3, 8.0, 0.95), (5, 5.0, 0.95), (10, 3, 0.95)])
def test_a_clear_winner_is_found(seeds: int, gap: float, share: float):
    noise = np.random.default_rng(2)
    found = [tie_groups(draw([30, 30, 30, 30, 30 + gap], seeds, noise)) for _ in range(300)]
    alone = [
        groups[-1] == "a" and all("a" not in other for other in groups[:-1]) for groups in found
    ]
    assert statistics.fmean(alone) >= share


def test_a_detectable_difference_is_found_as_often_as_promised():
    noise = np.random.default_rng(3)
    sizes = [minimum_difference(draw([30.0, 30.0], 10, noise)) for _ in range(200)]
    gap = statistics.fmean(size for size in sizes if size is not None)
    found = [len(set(tie_groups(draw([30.0, 30.0 + gap], 10, noise)))) for _ in range(600)]
    assert 0.75 <= statistics.fmean(number == 2 for number in found) <= 0.9


def test_every_pair_shares_a_letter_exactly_if_it_is_not_told_apart():
    noise = np.random.default_rng(4)
    for _ in range(200):
        samples = draw(noise.normal(0, 3, 6).tolist(), 3, noise)
        groups = tie_groups(samples)
        corrected = pooled_p(samples)
        for first, second in itertools.combinations(range(6), 2):
            pair = frozenset((first, second))
            apart = max(corrected[pair], welch_p(samples[first], samples[second])) < 0.03
            assert apart == (not set(groups[first]) & set(groups[second]))
        best = max(range(6), key=lambda index: statistics.fmean(samples[index]))
        assert "a" in groups[best]


def test_ties_overlap_where_the_middle_belongs_to_both():
    low, middle, high = [10.0, 10.2, 9.8], [10.5, 10.7, 10.3], [11.0, 11.2, 10.8]
    assert tie_groups([low, middle, high]) == ["b", "ab", "a"]


def test_the_p_values_are_scipys():
    noise = np.random.default_rng(5)
    for _ in range(50):
        first = noise.normal(30, 1, noise.integers(2, 7)).tolist()
        second = noise.normal(31, 3, noise.integers(2, 7)).tolist()
        expected = stats.ttest_ind(first, second, equal_var=False)
        assert welch_p(first, second) == pytest.approx(expected.pvalue, rel=1e-9)
        found, interval = difference(first, second), expected.confidence_interval(0.95)
        assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-9)
        student = stats.ttest_ind(first, second).pvalue
        assert pooled_p([first, second])[frozenset((0, 1))] == pytest.approx(student, rel=1e-9)
        assert margin(first) == pytest.approx(
            stats.t.interval(0.95, len(first) - 1, scale=stats.sem(first))[1], rel=1e-9
        )


def test_holm_is_the_published_procedure():
    samples = [[10.0, 11.0, 12.0], [12.0, 13.0, 14.5], [16.0, 17.0, 18.0]]
    spread = statistics.fmean(statistics.variance(values) for values in samples) ** 0.5
    raw = {
        pair: 2
        * stats.t.sf(
            abs(statistics.fmean(samples[pair[0]]) - statistics.fmean(samples[pair[1]]))
            / (spread * (2 / 3) ** 0.5),
            6,
        )
        for pair in itertools.combinations(range(3), 2)
    }
    smallest, second, largest = sorted(raw.values())
    expected = [3 * smallest, max(3 * smallest, 2 * second), max(2 * second, largest)]
    assert sorted(pooled_p(samples).values()) == pytest.approx(expected, rel=1e-9)


def test_without_a_spread_nothing_is_said():
    assert tie_groups([]) == [] and tie_groups([[1.0, 2.0]]) == [""]
    assert tie_groups([[1.0], [2.0]]) == ["", ""]
    assert tie_groups([[1.0, 1.0], [2.0, 2.0]]) == ["", ""]
    assert minimum_difference([[1.0], [2.0]]) is None
    assert difference([1.0], [2.0]).high is None
    assert margin([1.0]) is None
    assert welch_p([1.0, 1.0], [2.0, 2.0]) == 1.0


def test_a_single_seed_is_not_told_apart_from_many():
    assert tie_groups([[90.0], [10.0, 10.1, 9.9], [20.0, 20.1, 19.9]]) == ["ab", "b", "a"]
