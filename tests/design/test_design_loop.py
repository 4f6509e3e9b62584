"""The closed loop: what is believed after it, whether it predicts what it learns, and when it stops."""

import math

import pytest
import torch
from design_toys import Slope, outcome_of, slope_gain
from measures import z_of_mean

from sbi_core import Events, FunctionSimulator, InputError, Parameter, SbiError
from sbi_core.design import Gain, Hidden, Loop, run_loop
from sbi_core.design.experiment import ratio
from sbi_core.simulators import AsymmetryToy, LinearGaussian

WORLD = Slope()
NATURE = Hidden(WORLD, [0.7])
SMALL = {"seed": 1, "n": 64, "inner": 64}
THREE = [0.5, 1.0, 1.5]


def loop(nature=NATURE, **options):
    return run_loop(WORLD, nature, **{"candidates": THREE, "rounds": 3, **SMALL, **options})


def test_the_posterior_is_that_of_all_outcomes():
    found = loop(rounds=4)
    x, d = (torch.stack([getattr(one, name) for one in found.experiments])[:, 0] for name in ("x_obs", "design"))
    precision = 1 + (d**2).sum()
    assert float(found.posterior.mean) == pytest.approx(float((d * x).sum() / precision), abs=1e-4)
    assert float(found.posterior.stddev) == pytest.approx(float(precision**-0.5), rel=1e-3)
    assert set(d.tolist()) == {1.5}, "the steepest teaches most"
    last, before = found.experiments[3], found.experiments[2].posterior
    mean, width = (last.posterior.mean - before.mean) / before.stddev, last.posterior.stddev / before.stddev
    divergence = float((width**2 + mean**2 - 1) / 2 - width.log())
    assert last.realised == pytest.approx(divergence, rel=0.02, abs=1e-3)
    assert last.predicted.value == pytest.approx(math.log(float(1 / width)), abs=4 * last.predicted.error)
    assert found.experiments[0].choice.candidates[:, 0].tolist() == THREE and found.prior is not found.posterior


def test_the_first_rounds_may_be_given():
    watched = []
    found = loop(start=[0.5, 1.0], rounds=3, callback=watched.append)
    assert len(watched) == 3 and all(one is seen for one, seen in zip(found.experiments, watched, strict=True))
    assert [float(one.design) for one in found.experiments] == [0.5, 1.0, 1.5]
    assert [one.choice is None for one in found.experiments] == [True, True, False]
    assert found.experiments[0].predicted is None and found.experiments[2].predicted is not None
    assert [float(one.design) for one in loop(start=[1.5], policy="grid").experiments] == [1.5, 0.5, 1.0]
    with pytest.raises(InputError, match=r"start have shape \(1, 2\), expected \(C, 1\)"):
        loop(start=[[0.5, 1.0]])


def test_the_same_seed_gives_the_same_bits():
    first = outcome_of(loop(rounds=2))
    assert outcome_of(loop(rounds=2)) == first
    assert all(outcome_of(loop(rounds=2, seed=seed)) != first for seed in (2, None, None))


def thetas_told(thetas):
    """Predicted and realised gain of one round at each hidden theta (N, 1)."""
    pairs = []
    for k, theta in enumerate(thetas):
        options = {"candidates": [1.5], "rounds": 1, "confirm": False, **SMALL, "seed": k}
        found = run_loop(WORLD, Hidden(WORLD, theta, seed=k), **options)
        pairs.append((found.experiments[0].predicted.value, found.experiments[0].realised))
    return pairs


def test_what_is_predicted_is_realised_on_average():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        thetas = torch.randn(30, 1).double()
    pairs = thetas_told(thetas)
    assert z_of_mean([one - other for one, other in pairs]) < 4
    assert z_of_mean([other for _, other in pairs], slope_gain(1.5)) < 4
    value, error = ratio(pairs)
    assert abs(value - 1) < 4 * error < 0.8
    value, error = ratio(thetas_told(2.5 * thetas[:15].abs()))
    assert abs(value - 1) > 4 * error, "saboteur: thetas that are not drawn from the prior"


def test_the_ratio_of_a_loop():
    found = loop()
    sums = [sum(one.predicted.value for one in found.experiments), sum(one.realised for one in found.experiments)]
    assert found.predicted_over_realised()[0] == pytest.approx(sums[0] / sums[1])
    with pytest.raises(InputError, match="0 predicted rounds: a ratio with an error needs at least 2"):
        loop(policy="random").predicted_over_realised()
    assert Loop((), WORLD.prior, "").posterior.mean.tolist() == [0]


def designs(found):
    return [float(one.design) for one in found.experiments]


def test_policies_that_do_not_ask():
    drawn = designs(loop(policy="random", rounds=10))
    assert set(drawn) == set(THREE) and drawn[:4] != designs(loop(policy="random", rounds=4, seed=3))
    box = torch.tensor(designs(loop(policy="random", candidates=None, rounds=10)))
    assert len(box.unique()) == 10 and float(box.min()) < 0.5 < 1.5 < float(box.max()) < 2
    assert designs(loop(policy="grid", rounds=5)) == [0.5, 1.0, 1.5, 0.5, 1.0]
    fixed = loop(policy=[0.75], candidates=None)
    assert designs(fixed) == [0.75] * 3
    assert all(one.predicted is None and one.choice is None for one in fixed.experiments)
    assert designs(loop(policy=torch.tensor([0.75]), rounds=1)) == [0.75]


def test_rounds_and_costs_end_a_loop():
    assert loop(rounds=2).stopped == "all 2 rounds are done" and loop(rounds=0).experiments == ()
    dear = loop(cost=lambda design: 0.1, spend=0.3, rounds=9)
    assert len(dear.experiments) == 3, "three times .1 is .3, however it is rounded"
    assert dear.stopped == "budget: the next design would bring the costs to 0.4, of 0.3"
    assert len(loop(spend=2.5).experiments) == 2
    assert len(loop(spend=2.5, policy="random").experiments) == 2
    per_cost = loop(cost=lambda design: float(design) ** 4, rounds=1)
    assert designs(per_cost) == [0.5], "the cheap one teaches most for what it costs"


def test_a_width_that_is_reached_ends_a_loop():
    found = loop(width={"theta": 0.5}, rounds=9)
    widths = [float(one.posterior.stddev) for one in found.experiments]
    assert widths[-1] <= 0.5 < widths[-2] and found.stopped == "width reached: theta 0.5"
    assert loop(width={"theta": 0.5}, rounds=len(widths)).stopped == found.stopped, "in the last round too"
    with pytest.raises(InputError, match="there is no parameter 'teta'; did you mean 'theta'"):
        loop(lambda design, number: 1 / 0, width={"teta": 0.5})


def test_a_gain_below_its_noise_ends_a_loop():
    def falling(*_, seed, n, inner):
        falling.calls += 1
        return Gain(1.0 / falling.calls, 0.1, "none", "mine")

    falling.calls = 0
    found = loop(utility=falling, candidates=[1.0], noise=2.0, rounds=9)
    assert found.stopped == "gain below noise: 0.167 +- 0.1" and len(found.experiments) == 2
    assert len(loop(utility=lambda *_, **__: -1.0).experiments) == 3, "utilities may be negative, if nothing is said"


def test_a_loop_ends_where_no_design_is_left():
    def once(estimator, simulator, prior, design, *, seed, n, inner):
        left.pop()
        return 1.0

    left = [1] * 7  # each round looks at two candidates, and confirms one
    found = loop(utility=once, candidates=THREE[:2], rounds=5)
    assert len(found.experiments) == 2 and found.stopped.startswith("no design is left: all 2 designs are excluded")
    with pytest.raises(InputError, match="all 2 designs are excluded"):
        loop(utility=once, candidates=THREE[:2])


def test_a_realised_gain_that_is_poorly_resolved_is_flagged():
    sharp = type("Sharp", (Slope,), {"designs": (Parameter("d", 0, 5000),)})()
    found = run_loop(sharp, Hidden(sharp, [0.7]), candidates=[5000.0], rounds=1, **SMALL)
    assert "round 0, realised gain: EIG: of 4096 thetas only" in found.flags[0]
    assert loop(rounds=1).flags == ()


def test_arguments():
    box = FunctionSimulator(lambda theta, design, rng: theta, [Parameter("a", 0, 1)], designs=[Parameter("d", 0, 1)])
    refused = {
        r"states no exact log_likelihood. Give estimator=learn\(simulator": (box, {}),
        "'LinearGaussian' has no designs to choose from": (LinearGaussian(), {}),
        "policy = 'gian': expected one of 'gain', 'random', 'grid', or a design": (WORLD, {"policy": "gian"}),
        r"policy = \[1.0, 2.0\]: expected a design \(1,\) for \['d'\]": (WORLD, {"policy": [1.0, 2.0]}),
        "policy = 'grid' needs candidates": (WORLD, {"policy": "grid"}),
        r"candidates have shape \(2, 2\), expected \(C, 1\)": (WORLD, {"candidates": torch.ones(2, 2)}),
        r"cost\(\[1.0\]\) = -1.0": (WORLD, {"candidates": [1.0], "policy": "grid", "cost": lambda design: -1.0}),
    }
    for words, (simulator, options) in refused.items():
        with pytest.raises(SbiError, match=words):
            run_loop(simulator, lambda design, number: 1 / 0, **options)


def test_a_run_of_the_asymmetry_toy():
    runs = Events(AsymmetryToy(), 20)
    found = run_loop(runs, Hidden(runs, [1.2]), candidates=[40.0, 45.0, 48.0], rounds=3, **SMALL)
    assert designs(found) == [40] * 3 and [one.x_obs.shape for one in found.experiments] == [(20, 1)] * 3
    assert float(found.posterior.stddev) < 0.27 < 1 / 12**0.5


@pytest.mark.slow
def test_hidden_thetas_of_the_asymmetry_toy():
    """Calibration and use of loops of ten rounds of twenty events, over thetas drawn from the prior."""
    from loops_of_the_toy import loops, summary

    found = summary(loops(60))
    assert abs(found["ratio"] - 1) < 3 * found["ratio error"] < 0.3, found
    assert abs(found["coverage"] - 0.683) < 0.18, found
    assert found["sd"] < 0.75 * found["sd of random designs"], found
