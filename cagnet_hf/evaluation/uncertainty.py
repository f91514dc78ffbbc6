"""How sure a mean over several seeds is, and whether two rows differ: intervals, and a test of paired differences."""

import math
from collections.abc import Sequence
from itertools import product
from operator import mul
from random import Random
from statistics import mean, stdev

LEVEL = 0.95  # of the intervals; a difference is resolved below 1 - LEVEL
EXACT = 16  # of more pairs a sample of the signs is drawn
DRAWS = 2**EXACT


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
    test of pairs). All 2ⁿ ways to set the signs are counted up to `EXACT` pairs, and as many are drawn beyond. Of n
    pairs the smallest p value is 2 / 2ⁿ, so that five pairs never come below 0.05.

    Raises:
        ValueError: There is no pair.
    """
    if not differences:
        raise ValueError("a test needs a pair")
    pairs, rng = len(differences), Random(0)
    if pairs <= EXACT:
        signs = product((1, -1), repeat=pairs)
    else:
        signs = (rng.choices((1, -1), k=pairs) for _ in range(DRAWS))
    seen = abs(math.fsum(differences)) * (1 - 1e-9)  # the order of a sum moves its last digits
    as_far = [abs(math.fsum(map(mul, flipped, differences))) >= seen for flipped in signs]
    return sum(as_far) / len(as_far)


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
