"""Intervals and tests of success rates, by SciPy, which is imported late."""

from __future__ import annotations


def wilson_interval(num_successes: int, num_trials: int) -> tuple[float, float]:
    """The 95 % interval of a success rate; (0, 1) without trials. Source: Wilson, JASA 22 (1927)."""
    if not 0 <= num_successes <= num_trials:
        raise ValueError(f"{num_successes} successes in {num_trials} trials")
    if num_trials == 0:
        return 0.0, 1.0
    from scipy.stats import binomtest

    interval = binomtest(num_successes, num_trials).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def mcnemar_p_value(only_a: int, only_b: int) -> float:
    """Two-sided and exact, of pairs in which only one side succeeded; 1 without such pairs. Source: McNemar, Psychometrika 12 (1947)."""
    if only_a + only_b == 0:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(only_a, only_a + only_b).pvalue)
