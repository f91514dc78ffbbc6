"""How measurements are taken and shown. What they say is no test: machines differ."""

import time

import pytest

from scripts.speed.measuring import Line, Setting, describe, facts_of, markdown, measure


def rest(seconds: float):
    return lambda: time.sleep(seconds)


def timed(**fields):
    return measure(Line(name="a pause", **fields), Setting(repeats=2))


@pytest.mark.parametrize(("at_most", "met"), [(2, False), (50, True)])
def test_a_ratio_is_ours_over_the_bound_where_it_must_stay_small(at_most, met):
    result = timed(run=rest(0.1), bound_name="a short one", bound=rest(0.01), at_most=at_most)
    assert result.met is met
    assert 2 < result.value < 50
    assert result.lowest <= result.value <= result.highest
    assert (result.unit, result.required) == ("×", f"≤ {at_most}")


def test_a_ratio_is_the_bound_over_ours_where_it_must_grow():
    result = timed(run=rest(0.01), bound_name="a long one", bound=rest(0.1), at_least=2)
    assert result.value > 1
    assert result.bound_seconds > result.seconds


def test_an_absolute_line_shows_its_own_value():
    result = timed(run=rest(0.05), value=lambda seconds: 4 / seconds, unit="images/s")
    assert 0 < result.value <= 80
    assert (result.unit, result.met, result.bound_seconds) == ("images/s", None, None)


def test_the_first_round_does_not_count():
    runs = []
    measure(Line(name="counted", run=lambda: runs.append(0)), Setting(repeats=3))
    measure(Line(name="counted at once", run=lambda: runs.append(1), warms_up=False, repeats=1), Setting(repeats=3))
    assert (runs.count(0), runs.count(1)) == (4, 1)


def test_cpu_time_leaves_out_what_others_take():
    assert Setting(clock="cpu").seconds(rest(0.2)) < 0.1
    assert Setting(clock="wall").seconds(rest(0.2)) >= 0.2


def test_the_table_names_machine_and_verdict():
    facts = facts_of(Setting(repeats=2))
    missed = timed(run=rest(0.02), bound_name="a short one", bound=rest(0.001), at_most=0.1)
    table = markdown([missed], facts)
    assert f"PyTorch {facts['PyTorch']}" in table
    assert "| **missed** |" in table
    assert "MISSED" in describe(missed)
