"""How sure a mean over several seeds is, and whether two rows differ: intervals, and a test of paired differences."""

import math
from collections.abc import Sequence
from itertools import product
from operator import mul
from random import Random
from statistics import mean, stdev

LEVEL = 0.95  # of the intervals; a difference is resolved below 1 - LEVEL
EXACT = 16  # of more pairs a sample of the signs is drawn
DRAWS = 20_000


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half width of the mean's interval of level `LEVEL`, by Student's t; the half width of one is infinite.

    Raises:
        ValueError: There is no value.
    """
    if not values:
        raise ValueError("an interval needs a value")
    if len(values) == 1:
        return values[0], math.inf
    return mean(values), _student_quantile(len(values) - 1) * stdev(values) / math.sqrt(len(values))


def sign_flip_test(differences: Sequence[float]) -> float:
    """The two-sided p value of paired differences: how often their mean is as far from 0 when signs are flipped.

    Where two rows do not differ, either sign of a pair's difference is as likely as the other (Fisher's permutation
    test of pairs). All 2ⁿ ways to set the signs are counted up to `EXACT` pairs, so that the smallest p value of n
    pairs is 2 / 2ⁿ, and five pairs never come below 0.05. Of more pairs `DRAWS` ways are drawn, beside the one that
    was observed.

    Raises:
        ValueError: There is no pair.
    """
    if not differences:
        raise ValueError("a test needs a pair")
    pairs, rng = len(differences), Random(0)
    seen = abs(math.fsum(differences)) * (1 - 1e-9)  # the order of a sum moves its last digits

    def as_far(signs) -> int:
        return sum(abs(math.fsum(map(mul, flipped, differences))) >= seen for flipped in signs)

    if pairs <= EXACT:
        return as_far(product((1, -1), repeat=pairs)) / 2**pairs
    return (1 + as_far(rng.choices((1, -1), k=pairs) for _ in range(DRAWS))) / (1 + DRAWS)


def _student_quantile(degrees: int) -> float:
    """t for which Student's distribution has the share `LEVEL` within ±t."""
    low, high = 0.0, 100.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_within(middle, degrees) < LEVEL else (low, middle)
    return high


def _student_within(t: float, degrees: int) -> float:
    """P(|T| < t) of Student's distribution of whole degrees of freedom (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(degrees))
    sine, squared = math.sin(angle), math.cos(angle) ** 2
    term, total = (1.0, 1.0) if degrees % 2 == 0 else (math.cos(angle), math.cos(angle))
    for number in range(2 + degrees % 2, degrees, 2):
        term *= squared * (number - 1) / number
        total += term
    if degrees % 2 == 0:
        return sine * total
    return 2 / math.pi * (angle + (sine * total if degrees > 1 else 0))
