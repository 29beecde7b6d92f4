"""Which differences between samples of seeds are more than noise: tie groups, intervals, power.

The stated test: two of several samples are told apart when both say so at `SIGNIFICANCE`,

- Student's t-test with the spread pooled over all samples, Holm's correction over all pairs: with
  three seeds, one sample's own spread says little, and many pairs find a winner by chance;
- Welch's t-test of the two alone, for samples whose spreads do differ.

The distributions are SciPy's, out of `scipy.special`: importing `scipy.stats` takes seconds, which
every printed table would wait for.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

Samples = Sequence[Sequence[float]]

# At most this often is any difference found where there is none. Below the usual 0.05, so that
# equal truths are one group in 95% of cases also where the spreads are not equal.
SIGNIFICANCE = 0.03
CONFIDENCE = 0.95
POWER = 0.8
MOST_GROUPED = 60


@dataclass(frozen=True)
class Difference:
    """Mean of a first sample minus mean of a second.

    Attributes:
        low, high: Welch's 95% confidence interval; None without a spread to tell from.
    """

    value: float
    low: float | None = None
    high: float | None = None


def tie_groups(samples: Samples) -> list[str]:
    """Letters for each sample: those that share one are not told apart by the test.

    "a" is with the largest mean. Every pair that is not told apart shares a letter, no other does
    (a compact letter display; Piepho 2004). A sample of a single value has no spread of its own
    and cannot be told apart from any. With more than `MOST_GROUPED` samples only those that are
    not told apart from the best have a letter.

    Returns:
        "" for all when there are fewer than two samples or no spread at all.
    """
    if len(samples) < 2 or _pooled(samples) is None:
        return [""] * len(samples)
    if len(samples) > MOST_GROUPED:
        return _best_group(samples)
    order = sorted(range(len(samples)), key=lambda i: -statistics.fmean(samples[i]))
    apart = _told_apart(samples)
    groups: list[frozenset[int]] = [frozenset(order)]
    for pair in apart:
        split = [group - {one} if pair <= group else group for group in groups for one in pair]
        distinct = dict.fromkeys(split)
        groups = [group for group in distinct if not any(group < other for other in distinct)]
    place = {index: rank for rank, index in enumerate(order)}
    groups.sort(key=lambda group: sorted(place[index] for index in group))
    return [
        "".join(_letter(number) for number, group in enumerate(groups) if index in group)
        for index in range(len(samples))
    ]


def _best_group(samples: Samples) -> list[str]:
    """ "a" for what is not told apart from the best mean, by the strictest of Holm's levels."""
    sd, freedom = _pooled(samples) or (0.0, 0)
    best = max(samples, key=statistics.fmean)
    strictest = SIGNIFICANCE / math.comb(len(samples), 2)
    letters = []
    for values in samples:
        error = sd * math.sqrt(1 / len(best) + 1 / len(values))
        p = _two_sided(statistics.fmean(best) - statistics.fmean(values), error, freedom)
        apart = p < strictest and _differ(best, values)
        letters.append("" if apart else "a")
    return letters


def minimum_difference(samples: Samples) -> float | None:
    """The true difference that the test finds with a power of 80%, at these spreads and seeds.

    By the usual formula for two means, (t of significance + t of power) times the standard error,
    with the strictest of Holm's levels and the smallest two samples. None where nothing can be
    found.
    """
    from scipy.special import stdtrit

    pooled = _pooled(samples)
    sizes = sorted(len(values) for values in samples)
    if len(samples) < 2 or pooled is None or sizes[0] < 2:
        return None
    sd, freedom = pooled
    level = SIGNIFICANCE / math.comb(len(samples), 2)
    reach = stdtrit(freedom, 1 - level / 2) + stdtrit(freedom, POWER)
    return float(reach * sd * math.sqrt(1 / sizes[0] + 1 / sizes[1]))


def difference(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Difference of two means with its confidence interval."""
    from scipy.special import stdtrit

    value = statistics.fmean(first) - statistics.fmean(second)
    if min(len(first), len(second)) < 2:
        return Difference(value)
    error, freedom = _welch(first, second)
    if not error:
        return Difference(value)
    half = float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) * error
    return Difference(value, value - half, value + half)


def margin(values: Sequence[float]) -> float | None:
    """Half the width of the 95% confidence interval of a mean; None from a single value."""
    from scipy.special import stdtrit

    if len(values) < 2:
        return None
    t = float(stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2))
    return t * statistics.stdev(values) / math.sqrt(len(values))


def welch_p(first: Sequence[float], second: Sequence[float]) -> float:
    """Two-sided p-value of Welch's t-test; 1 when neither sample has a spread to measure against.

    Agrees with `scipy.stats.ttest_ind(..., equal_var=False)`.
    """
    error, freedom = _welch(first, second)
    return _two_sided(statistics.fmean(first) - statistics.fmean(second), error, freedom)


def pooled_p(samples: Samples) -> dict[frozenset[int], float]:
    """Two-sided p-values of Student's t-tests with pooled spread, by pair, Holm-corrected."""
    pooled = _pooled(samples)
    pairs = list(combinations(range(len(samples)), 2))
    if pooled is None:
        return {frozenset(pair): 1.0 for pair in pairs}
    sd, freedom = pooled
    means = [statistics.fmean(values) for values in samples]
    found = {}
    for first, second in pairs:
        error = sd * math.sqrt(1 / len(samples[first]) + 1 / len(samples[second]))
        found[first, second] = _two_sided(means[first] - means[second], error, freedom)
    corrected, largest = {}, 0.0
    for rank, pair in enumerate(sorted(found, key=found.__getitem__)):
        largest = max(largest, min(1.0, (len(pairs) - rank) * found[pair]))
        corrected[frozenset(pair)] = largest
    return corrected


def _told_apart(samples: Samples) -> list[frozenset[int]]:
    found = []
    for pair, p in pooled_p(samples).items():
        first, second = (samples[index] for index in sorted(pair))
        if p < SIGNIFICANCE and _differ(first, second):
            found.append(pair)
    return found


def _differ(first: Sequence[float], second: Sequence[float]) -> bool:
    """Whether Welch's test, of the two alone, tells them apart as well."""
    return min(len(first), len(second)) > 1 and welch_p(first, second) < SIGNIFICANCE


def _pooled(samples: Samples) -> tuple[float, int] | None:
    """Standard deviation within samples and its degrees of freedom; None without a spread."""
    freedom = sum(len(values) - 1 for values in samples)
    squares = sum((len(v) - 1) * statistics.variance(v) for v in samples if len(v) > 1)
    return (math.sqrt(squares / freedom), freedom) if squares else None


def _welch(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """Standard error of a difference of means, and Welch's degrees of freedom."""
    shares = [statistics.variance(values) / len(values) for values in (first, second)]
    if not any(shares):
        return 0.0, 0.0
    freedom = sum(shares) ** 2 / sum(
        share**2 / (len(values) - 1) for share, values in zip(shares, (first, second), strict=True)
    )
    return math.sqrt(sum(shares)), freedom


def _two_sided(value: float, error: float, freedom: float) -> float:
    from scipy.special import stdtr  # not needed with one seed

    return float(2 * stdtr(freedom, -abs(value) / error)) if error else 1.0


def _letter(number: int) -> str:
    return chr(ord("a") + number) if number < 26 else f"({number + 1})"
