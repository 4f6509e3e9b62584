"""Which design is chosen, and by what: exact worlds, utilities of one's own, costs, common random numbers."""

import math
import re

import pytest
import torch
from design_toys import Slope, slope_gain
from measures import z_of_mean

from sbi_core import Events, FunctionSimulator, InputError, Parameter
from sbi_core.design import Gain, fisher_screen, posterior_gain, propose
from sbi_core.simulators import AsymmetryToy, DeathProcess

TOY = AsymmetryToy()
RUNS = Events(TOY, 20)
WORLD = Slope()
SMALL = {"n": 128, "inner": 128}
THREE = [0.5, 1.0, 2.0]


def choose(utility=posterior_gain, candidates=THREE, **options):
    return propose(WORLD, WORLD, WORLD.prior, candidates, utility, **{"seed": 1, **options})


def height(estimator, simulator, prior, design, *, seed):
    return float(design)


def test_the_asymmetry_toy_is_best_measured_at_either_end():
    choice = propose(RUNS, RUNS, TOY.prior, torch.linspace(40, 50, 5), seed=1, n=256, inner=128)
    assert float(choice.design) in (40, 50) and choice.excluded == {} and choice.flags == ()
    assert abs(choice.gain.value - 0.1760) < 4 * choice.gain.error < 0.06
    values, errors = choice.values, choice.errors
    assert values[2] < 1e-9 and abs(values[0] - values[4]) < 4 * errors[[0, 4]].norm()
    assert values[0] - values[1] > 4 * errors[[0, 1]].norm(), "saboteur: the inner designs teach less"


def test_times_of_counting():
    world, times = DeathProcess(), torch.tensor([0.0, 0.54, 2.68], dtype=torch.float64)
    pairs = torch.cartesian_prod(times, times)
    choice = propose(world, world, world.prior, pairs, seed=1, n=512, inner=256)
    assert choice.design.tolist() == [0.54, 2.68] and abs(choice.gain.value - 0.983) < 4 * choice.gain.error
    backwards = [k for k, (first, second) in enumerate(pairs.tolist()) if second < first]
    assert sorted(choice.excluded) == [0, *backwards]
    assert all("none before the last. Sort them" in choice.excluded[k] for k in backwards)
    assert "x is the same in all 512 experiments at this design: it teaches nothing" in choice.excluded[0]
    assert choice.values.isnan().nonzero()[:, 0].tolist() == sorted(choice.excluded)
    assert "4 of 9 designs are excluded, the first because: InputError: x is the same" in choice.flags[0]


UTILITIES = {
    "value": lambda *_, seed: 2.5,
    "tensor": lambda *_, seed: torch.tensor(2.5),
    "pair": lambda *_, seed: (2.5, 0.1),
    "gain": lambda *_, seed: Gain(2.5, 0.1, "none", "mine", flags=("look here",)),
}


@pytest.mark.parametrize("name", UTILITIES)
def test_a_utility_of_ones_own(name):
    choice = choose(UTILITIES[name])
    assert choice.gain.value == 2.5 and choice.gain.error == (0.1 if name in ("pair", "gain") else 0)
    assert choice.flags == (("look here",) if name == "gain" else ())
    assert float(choose(height).design) == 2 and float(choose(lambda *a, seed: -height(*a, seed=seed)).design) == 0.5


def raises():
    raise RuntimeError("out of nails")


BROKEN = {
    "NaN": (lambda: math.nan, "is nan"),
    "infinite": (lambda: (1.0, math.inf), "inf"),
    "raises": (raises, "RuntimeError: out of nails"),
    "None": (lambda: None, "TypeError"),
    "too much": (lambda: (1, 2, 3), "ValueError"),
}


@pytest.mark.parametrize(("wrong", "reason"), BROKEN.values(), ids=BROKEN)
def test_designs_at_which_a_utility_fails_are_left_out(wrong, reason):
    choice = choose(lambda *a, seed: wrong() if float(a[3]) == 2 else height(*a, seed=seed))
    assert float(choice.design) == 1 and set(choice.excluded) == {2} and reason in choice.excluded[2]
    assert choice.gains[2] is None and choice.values.tolist()[:2] == [0.5, 1] and reason in choice.flags[0]
    with pytest.raises(InputError, match="all 3 designs are excluded, the first because") as caught:
        choose(lambda *a, seed: wrong())
    assert reason in str(caught.value)


def test_a_design_that_fails_when_looked_at_again_gives_way_to_the_next():
    def moody(*given, seed):
        if seed != 1 and float(given[3]) == 2:
            raise RuntimeError("out of nails")
        return height(*given, seed=seed)

    choice = choose(moody)
    assert float(choice.design) == 1 and "not confirmed: RuntimeError: out of nails" in choice.excluded[2]
    assert choice.gains[2] is None
    assert float(choose(moody, confirm=False).design) == 2


def test_costs_divide():
    choice = choose(height, cost=lambda design: float(design) ** 2)
    assert float(choice.design) == 0.5 and choice.gain.value == 0.5
    assert choice.costs.tolist() == [0.25, 1, 4] and choice.values.tolist() == [2, 1, 0.5]
    for wrong in (0, -1, math.nan, math.inf):
        with pytest.raises(InputError, match=r"cost\(\[0.5\]\) = .*: expected a positive number"):
            choose(lambda *a, seed: raises(), cost=lambda design, wrong=wrong: wrong)


def test_x_that_is_always_the_same_teaches_nothing():
    def counts(theta, design, rng):
        return rng.binomial(5, design / 2 * (1 + theta)) * 1.0

    axes = [Parameter("p", 0, 1)]
    box = FunctionSimulator(counts, axes, designs=[Parameter("d", 0, 1)], x_shape=(1,))

    def spread(estimator, simulator, prior, design, *, seed, n=64):
        return fisher_screen(simulator, prior, design, estimator=Exact(), n=2, each=n // 2, seed=seed)

    class Exact:
        parameters, designs = box.parameters, box.designs

        def observe(self, x, design=None):
            return lambda theta: -((x - 2.5 * design * (1 + theta)) ** 2)[..., 0]

    choice = propose(box, None, box.prior, [0.0, 1.0], spread, seed=1)
    assert "x is the same in all 64 experiments at this design: it teaches nothing." in choice.excluded[0]
    assert float(choice.design) == 1


def test_the_chosen_gain_is_estimated_anew():
    """Noise that is another at each design: the largest of five is 1.163 standard deviations too large."""

    def noisy(estimator, simulator, prior, design, *, seed):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(hash((seed, float(design))) % 2**31)
            return float(torch.randn(())), 1.0

    choices = [choose(noisy, torch.linspace(0, 2, 5), seed=seed) for seed in range(80)]
    assert z_of_mean([choice.gain.value for choice in choices]) < 4
    assert z_of_mean([choice.values.max() for choice in choices], 1.163) < 4, "the curve itself"
    assert z_of_mean([choice.values.max() for choice in choices]) > 4, "saboteur"


def test_the_chosen_gain_is_unbiased():
    ends = [40.0, 50.0]
    choices = [propose(RUNS, RUNS, TOY.prior, ends, seed=seed, n=10, inner=32) for seed in range(64)]
    assert z_of_mean([choice.gain.value for choice in choices], 0.1760) < 4
    assert z_of_mean([choice.values.max() for choice in choices], 0.1760) > 4, "saboteur: the larger of two"


def test_common_random_numbers_make_neighbours_comparable():
    def gain(d, seed):
        return posterior_gain(WORLD, WORLD, WORLD.prior, torch.tensor([d]).double(), seed=seed, **SMALL).value

    together = torch.tensor([gain(1.1, seed) - gain(1.0, seed) for seed in range(12)])
    apart = torch.tensor([gain(1.1, seed) - gain(1.0, seed + 1000) for seed in range(12)])
    assert z_of_mean(together, slope_gain(1.1) - slope_gain(1.0)) < 4
    assert together.std() < 0.3 * apart.std()


def test_two_processes_choose_the_same_bits():
    shift = 0.1

    def drawn(estimator, simulator, prior, design, *, seed, n):
        """A closure that draws from torch's global state and sums many numbers."""
        return float(posterior_gain(estimator, simulator, prior, design, n=n, inner=64, seed=seed).value) + (
            shift * float(torch.rand(50_000).sum()) / 1e6
        )

    one, two, other = (
        choose(drawn, [0.0, 0.5, 1.0, 2.0, 2.0], workers=workers, seed=seed, n=64)
        for workers, seed in ((1, 3), (2, 3), (1, 4))
    )
    assert torch.equal(one.values, two.values) and one.gain.value == two.gain.value and one.excluded == two.excluded
    assert float(one.design) == float(two.design) == 2
    assert not torch.equal(one.values, other.values)


def test_the_box_is_searched():
    choice = choose(candidates=None, budget=12, **SMALL)
    assert 1.8 < float(choice.design) <= 2 and abs(choice.gain.value - slope_gain(2)) < 0.2
    world = DeathProcess()
    found = propose(world, world, world.prior, budget=12, seed=1, **SMALL)
    backwards = [k for k, (first, second) in enumerate(found.candidates.tolist()) if second < first]
    assert sorted(found.excluded) == backwards and backwards, "what failed in the search is told too"
    assert (found.design == found.candidates).all(1).any()


def test_arguments():
    for wrong in ([[1.0, 2.0]], [], 1.0):
        with pytest.raises(InputError, match=r"candidates have shape .* expected \(C, 1\) for \['d'\]"):
            choose(candidates=wrong)
    with pytest.raises(InputError, match="workers = 0, expected at least 1"):
        choose(workers=0)
    with pytest.raises(InputError, match="'Bare' has no designs to choose from"):
        propose(type("Bare", (Slope,), {"designs": ()})(), WORLD, WORLD.prior, THREE)
    with pytest.raises(InputError, match=r"all 3 .* unexpected keyword argument 'iner'"):
        choose(iner=3)


def test_a_design_that_is_searched_again_is_estimated_anew():
    """On whole numbers a search comes back; the same random numbers would count as new evidence."""
    asked = []

    def noisy(estimator, simulator, prior, design, *, seed):
        asked.append((float(design), seed))
        return float(design) / 10 + torch.randn((), dtype=torch.float64), 1.0

    few = type("Few", (Slope,), {"designs": (Parameter("d", 0, 3, integer=True),)})()
    propose(few, few, few.prior, utility=noisy, budget=12, confirm=False, seed=1)
    assert len(set(asked)) == len(asked) == 12 and len({design for design, _ in asked}) <= 4


def test_a_choice_is_told():
    choice = choose(candidates=[2.0, 0.5, 1.0], **SMALL)
    assert re.match(r"d = 2: 0\.\d+ \+- 0\.\d+ ", str(choice)) and "3 candidates" in str(choice)
