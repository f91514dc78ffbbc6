"""Intervals of means over seeds, and the test of paired differences."""

import math
from itertools import product
from random import Random

import pytest

from cagnet_hf.evaluation import uncertainty
from cagnet_hf.evaluation.uncertainty import interval, sign_flip_test

# Two-sided 95 % quantiles of Student's distribution, as tables print them: values less one -> quantile.
QUANTILES = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 7: 2.365, 10: 2.228, 29: 2.045, 120: 1.980}


@pytest.mark.parametrize("degrees", QUANTILES)
def test_the_half_width_is_that_of_student_s_table(degrees):
    values = [float(i % 2) for i in range(degrees + 1)]
    mean = sum(values) / len(values)
    error = math.sqrt(sum((value - mean) ** 2 for value in values) / degrees / len(values))
    found, half_width = interval(values)
    assert found == pytest.approx(mean)
    assert half_width / error == pytest.approx(QUANTILES[degrees], abs=6e-4)


def test_intervals_hold_the_mean_as_often_as_they_say():
    rng, held = Random(0), 0
    for _ in range(2000):
        mean, half_width = interval([rng.gauss(3, 2) for _ in range(5)])
        held += abs(mean - 3) <= half_width
    assert held / 2000 == pytest.approx(0.95, abs=0.015)


def test_one_value_has_no_interval_and_none_has_no_mean():
    assert interval([0.5]) == (0.5, math.inf)
    with pytest.raises(ValueError, match="needs a value"):
        interval([])


def test_the_p_value_counts_the_flips_that_are_as_far_from_zero():
    differences = [0.3, -0.1, 0.2, 0.4, -0.05]
    flips = [abs(sum(s * d for s, d in zip(signs, differences, strict=True))) for signs in product((1, -1), repeat=5)]
    assert sign_flip_test(differences) == sum(flip >= 0.75 - 1e-9 for flip in flips) / 32


@pytest.mark.parametrize(("pairs", "smallest"), [(1, 1.0), (5, 0.0625), (6, 0.03125), (8, 0.0078125)])
def test_differences_of_one_sign_give_the_smallest_p_value(pairs, smallest):
    assert sign_flip_test([0.1 * (i + 1) for i in range(pairs)]) == smallest
    assert sign_flip_test([-0.1] * pairs) == smallest


def test_no_difference_is_no_evidence():
    assert sign_flip_test([0.0] * 8) == 1


def test_of_many_pairs_a_sample_of_the_flips_is_drawn(monkeypatch):
    rng = Random(1)
    differences = [rng.gauss(0.5, 1) for _ in range(12)]
    exact = sign_flip_test(differences)
    monkeypatch.setattr(uncertainty, "EXACT", 4)
    assert sign_flip_test(differences) == pytest.approx(exact, abs=0.01)


def test_the_p_value_of_many_differences_of_one_sign_is_small_and_not_zero():
    assert sign_flip_test([0.1] * 20) == 1 / (1 + uncertainty.DRAWS)


def test_a_test_needs_a_pair():
    with pytest.raises(ValueError, match="needs a pair"):
        sign_flip_test([])
