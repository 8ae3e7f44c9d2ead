"""Intervals and tests of success rates, by SciPy, which is imported late."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

_Z = 1.959963984540054  # the normal distribution's 97.5 % quantile


def wilson_interval(num_successes: float, num_trials: float) -> tuple[float, float]:
    """The 95 % interval of a success rate; (0, 1) without trials. Source: Wilson, JASA 22 (1927).

    Counts may be broken numbers, where episodes weigh differently (`interval_of_mean`).

    Raises:
        ValueError: more successes than trials, or fewer than none.
    """
    if not 0 <= num_successes <= num_trials:
        raise ValueError(f"{num_successes} successes in {num_trials} trials")
    if num_trials == 0:
        return 0.0, 1.0
    rate, z2 = num_successes / num_trials, _Z**2
    middle = num_successes + z2 / 2
    half = _Z * math.sqrt(num_trials * rate * (1 - rate) + z2 / 4)
    low = 0.0 if num_successes == 0 else (middle - half) / (num_trials + z2)
    high = 1.0 if num_successes == num_trials else (middle + half) / (num_trials + z2)
    return low, high


def interval_of_mean(counts: Sequence[tuple[int, int]]) -> tuple[float, float]:
    """The 95 % interval of success averaged over tasks, each task with the same weight; `counts`: (successes, trials > 0) of each.

    Wilson's, for as many episodes of equal weight as would tell the mean as well (Kish, Survey Sampling, 1965, 11.7): K tasks of n each
    count as K n episodes, all that there are; a task with few holds the number down, since it is as much of the mean as the others.
    """
    effective = len(counts) ** 2 / sum(1 / trials for _, trials in counts)
    rate = sum(successes / trials for successes, trials in counts) / len(counts)
    return wilson_interval(min(rate, 1.0) * effective, effective)


def mcnemar_p_value(only_a: int, only_b: int) -> float:
    """Two-sided and exact, of pairs in which only one side succeeded; 1 without such pairs. Source: McNemar, Psychometrika 12 (1947)."""
    if only_a + only_b == 0:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(only_a, only_a + only_b).pvalue)


def ks_test(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    """(largest distance of the two empirical distributions, two-sided exact p-value); infinity is a value like others.

    Failures, whose time to success is not known, all have the value infinity: the test then asks for a difference before the limit, or in
    how many reach it. Ties make it cautious. Source: Smirnov, Annals of Mathematical Statistics 19 (1948) 279.
    """
    from scipy.stats import ks_2samp

    if sorted(a) == sorted(b):
        return 0.0, 1.0
    finite = [value for value in (*a, *b) if value != float("inf")]
    late = max(finite, default=0.0) + 1
    with warnings.catch_warnings():  # where rounding makes the exact value a little more than 1, the approximation says 1, too
        warnings.filterwarnings("ignore", message="ks_2samp: Exact calculation unsuccessful")
        found = ks_2samp([min(value, late) for value in a], [min(value, late) for value in b])
    return float(found.statistic), float(found.pvalue)


def fisher_p_value(num_a: int, trials_a: int, num_b: int, trials_b: int) -> float:
    """Two-sided and exact, of two success rates whose episodes are no pairs. Source: Fisher, Statistical Methods for Research Workers."""
    from scipy.stats import fisher_exact

    return float(fisher_exact([[num_a, trials_a - num_a], [num_b, trials_b - num_b]]).pvalue)
