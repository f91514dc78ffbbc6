"""How measurements are taken and shown, by a clock of the tests' own. What they say is no test: machines differ."""

import pytest
import torch
from tiny import BACKBONE, HEADS

from cagnet_hf.training.recipe_files import load_recipe
from scripts.speed import lines as lines_module
from scripts.speed import stage as stage_module
from scripts.speed.measuring import Line, Setting, facts_of, markdown, measure


class Clock:
    """A clock that only moves when something `takes` time: on the wall, or on the wall and this process's own."""

    def __init__(self):
        self.wall = self.cpu = 0.0

    def takes(self, *seconds: float, cpu: bool = True):
        """A run for `measure`: its first call takes the first number of seconds, and so on in turns."""
        left = []

        def run():
            left[:] = left or seconds
            passed = left.pop(0)
            self.wall += passed
            self.cpu += passed * cpu

        return run


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("scripts.speed.measuring.time.perf_counter", lambda: clock.wall)
    monkeypatch.setattr("scripts.speed.measuring.time.process_time", lambda: clock.cpu)
    return clock


def timed(repeats: int = 2, **fields) -> dict:
    return measure(Line(name="a pause", **fields), Setting(repeats=repeats))


@pytest.mark.parametrize(("at_most", "met"), [(2, False), (8, True), (50, True)])
def test_a_ratio_is_ours_over_the_bound_where_it_must_stay_small(clock, at_most, met):
    result = timed(run=clock.takes(1.0), bound_name="a short one", bound=clock.takes(0.125), at_most=at_most)
    assert (result["value"], result["met"]) == (8, met)
    assert (result["unit"], result["required"]) == ("×", f"≤ {at_most}")


@pytest.mark.parametrize(("at_least", "met"), [(2, True), (9, False)])
def test_a_ratio_is_the_bound_over_ours_where_it_must_grow(clock, at_least, met):
    result = timed(run=clock.takes(0.125), bound_name="a long one", bound=clock.takes(1.0), at_least=at_least)
    assert (result["value"], result["met"]) == (8, met)
    assert (result["seconds"], result["bound_seconds"]) == (0.125, 1.0)


def test_an_absolute_line_shows_its_own_value(clock):
    result = timed(run=clock.takes(0.5), value=lambda seconds: 4 / seconds, unit="images/s")
    assert (result["value"], result["unit"]) == (8, "images/s")
    assert (result["met"], result["bound_seconds"]) == (None, None)


def test_the_median_counts_and_the_first_round_does_not(clock):
    result = timed(run=clock.takes(100.0, 2.0, 1.0, 3.0), repeats=3)
    assert (result["value"], result["lowest"], result["highest"]) == (2, 1, 3)


def test_line_and_bound_take_turns():
    order = []
    timed(run=lambda: order.append("line"), bound=lambda: order.append("bound"), at_most=1)
    assert order == ["line", "bound"] * 3


def test_cpu_time_leaves_out_what_others_take(clock):
    wait = clock.takes(0.25, cpu=False)
    assert Setting(clock="cpu").seconds(wait) == 0
    assert Setting(clock="wall").seconds(wait) == 0.25
    assert Setting(clock="cpu").seconds(wait, clock="wall") == 0.25  # of a line with processes of its own


def test_the_table_names_machine_and_verdict(clock):
    facts = facts_of(Setting(repeats=2))
    missed = timed(run=clock.takes(1.0), bound_name="a short one", bound=clock.takes(0.5), at_most=0.1)
    table = markdown([missed], facts)
    assert f"torch {torch.__version__.partition('+')[0]}" in table
    assert "| a pause | 2 × (2–2) | ≤ 0.1 | **missed** | 1 | a short one | 0.5 |" in table


def test_the_memory_of_a_step_is_the_peak_since_the_step_began(monkeypatch):
    order = []
    monkeypatch.setattr(lines_module, "forget_peak_memory", lambda device: order.append("forgotten"))
    monkeypatch.setattr(lines_module, "peak_memory", lambda device: 7.0)
    result = measure(lines_module.memory_line(Setting(), lambda: order.append("step")), Setting(repeats=1))
    assert order == ["forgotten", "step"] * 2
    assert (result["value"], result["unit"]) == (7, "MiB")


def test_every_line_and_bound_runs(monkeypatch):
    """On tiny networks; the lines that start processes train and import as other tests do."""

    def tiny(name: str):
        keys = [*BACKBONE, *HEADS] if name.endswith(("cagnet_pi", "cagnet_pa")) else BACKBONE
        return load_recipe(name, ["model.backbone=resnet", "model.depths=[1, 1, 1, 1]", *keys, "num_workers=0"])

    for module in (lines_module, stage_module):
        monkeypatch.setattr(module, "load_recipe", tiny)
    monkeypatch.setattr(lines_module, "process_lines", lambda: ())
    names = []
    for line in lines_module.lines(Setting()):
        line.run()
        if line.bound is not None:
            line.bound()
        names.append(line.name)
    assert len(names) == len(set(names)) > 12
