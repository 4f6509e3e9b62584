"""One estimator for all designs: which labels it is trained with, and what its certificate is worth."""

import pytest
import torch

from sbi_core import Events, FunctionSimulator, InputError, MissingGold, Parameter, UniformPrior
from sbi_core.design import Gain, learn, posterior_gain
from sbi_core.simulators import AsymmetryToy, GaltonBoard, LinearGaussian

pytestmark = pytest.mark.filterwarnings("ignore::sbi_core.errors.SbiWarning")  # short trainings say so

NOISY = LinearGaussian(latent_std=0.3, noise_std=3.0)  # z knows 1.24 nats, x .05
CLEAR = LinearGaussian(latent_std=0.6, noise_std=0.0)  # z is x, .67 nats
SHORT = {"max_epochs": 4, "seed": 1}
TOY, BOARD = AsymmetryToy(), GaltonBoard()


def black_box():
    def counts(theta, design, rng):
        return rng.normal(theta * design)

    return FunctionSimulator(counts, [Parameter("a", -1, 1)], designs=[Parameter("d", 0, 2)])


@pytest.mark.parametrize(("world", "labels"), [(NOISY, "hard"), (CLEAR, "gold")], ids=["noisy", "clear"])
def test_labels_follow_the_excess(world, labels):
    found = learn(world, world.prior, 1000, **SHORT)
    assert found.labels == labels and (found.excess > 0.8) == (labels == "hard")
    assert found.certificate.direction == "lower" and found.certificate.method == "contrastive bound"
    exact = float(world.information_gain())
    assert found.certificate.value < exact + 4 * found.certificate.error, "a lower bound"
    if labels == "hard":
        joint = found.certificate.value + found.excess
        assert joint > exact + 4 * found.certificate.error, "saboteur: what z says is no bound of what x says"
    chosen = learn(world, world.prior, 300, labels="gold" if labels == "hard" else "hard", **SHORT)
    assert chosen.labels != labels, "unless it is said"


def test_black_boxes_need_no_gold():
    world = black_box()
    found = learn(world, world.prior, 300, designs=[[0.5], [2.0]], **SHORT)
    assert found.labels == "hard" and found.excess is None
    assert [p.name for p in found.estimator.designs] == ["d"] and found.data.design[:4, 0].tolist() == [0.5, 2, 0.5, 2]
    with pytest.raises(MissingGold, match="labels='gold': simulator 'FunctionSimulator' has no log_joint"):
        learn(world, world.prior, 300, labels="gold")
    gain = posterior_gain(found.estimator, world, world.prior, torch.tensor([2.0]), n=64, inner=64)
    assert isinstance(gain, Gain)


def test_designs_that_are_learned():
    few = {"labels": "hard", **SHORT, "max_epochs": 1}
    at = [45.0, 47.5, 50.0]
    dealt = [
        learn(TOY, TOY.prior, 120, designs=designs, **few).data.design for designs in (at, torch.tensor(at)[:, None])
    ]
    assert torch.equal(*dealt) and dealt[0][:4, 0].tolist() == [45, 47.5, 50, 45]
    spread = learn(Events(TOY, 20), TOY.prior, 120, designs=UniformPrior(TOY.designs), **few)
    assert len(spread.data.design.unique()) == 120 and spread.data.x.shape == (120, 1), "single events"
    balls = learn(BOARD, BOARD.prior, 200, designs=[15.0, 20.0], **few)
    assert balls.data.design.unique(dim=0).tolist() == [[15, 20]]
    assert learn(TOY, TOY.prior, 120, **few).data.design is None
    with pytest.raises(InputError, match=r"designs have shape \(1, 3\), expected \(C, 2\) for \['drop', 'rows'\]"):
        learn(BOARD, BOARD.prior, 200, designs=[1.0, 2.0, 3.0])


def test_the_same_seed_learns_the_same():
    one, two, other = (learn(CLEAR, CLEAR.prior, 300, labels="gold", **{**SHORT, "seed": s}) for s in (1, 1, 2))
    x, theta = torch.tensor([[0.3]]), torch.tensor([[0.1]])
    values = [found.estimator.log_likelihood(theta, x).item() for found in (one, two, other)]
    assert values[0] == values[1] != values[2] and one.certificate.value == two.certificate.value


def test_labels_of_a_class_are_summed_over():
    found = learn(BOARD, BOARD.prior, 1000, labels="gold", **SHORT)
    gain = posterior_gain(found.estimator, BOARD, BOARD.prior, n=64, inner=256)
    assert gain.method == "posterior read-out, summed over x" and gain.simulations == 0


def test_arguments():
    with pytest.raises(InputError, match="labels = 'soft': expected one of 'auto', 'hard', 'gold'"):
        learn(TOY, TOY.prior, 100, labels="soft")
    with pytest.raises(InputError, match="theta has"):
        learn(TOY, LinearGaussian(2).prior, 100)
    with pytest.raises(InputError, match="n = 0, expected at least 1"):
        learn(TOY, TOY.prior, 0, designs=[45.0])


def exact_gain(world, design, runs=None):
    at = None if design is None else torch.tensor(design).double()
    return posterior_gain(runs or world, runs or world, world.prior, at, n=2048, inner=1024, seed=9).value


@pytest.mark.slow
@pytest.mark.parametrize("labels", ["hard", "gold"])
def test_a_galton_board_at_one_design_and_at_several(labels):
    one = learn(BOARD, BOARD.prior, 5000, labels=labels, seed=1)
    exact = exact_gain(BOARD, None)
    found = posterior_gain(one.estimator, BOARD, BOARD.prior, inner=1024).value
    assert found == pytest.approx(exact, rel=0.1 if labels == "hard" else 0.05)
    assert one.certificate.value < exact + 4 * one.certificate.error
    drops = [[15.0, 20.0], [12.0, 20.0], [15.0, 10.0]]
    several = learn(BOARD, BOARD.prior, 10_000, designs=drops, labels=labels, seed=1)
    for drop in drops:
        at = torch.tensor(drop).double()
        found = posterior_gain(several.estimator, BOARD, BOARD.prior, at, inner=1024).value
        assert found == pytest.approx(exact_gain(BOARD, drop), rel=0.25, abs=0.01)


@pytest.mark.slow
def test_twenty_events_of_the_asymmetry_toy():
    found = learn(TOY, TOY.prior, 20_000, designs=UniformPrior(TOY.designs), seed=1, labels="gold")
    runs = Events(TOY, 20)
    for phi in (40.0, 47.0, 50.0):
        at = torch.tensor([phi]).double()
        gain = posterior_gain(found.estimator, runs, TOY.prior, at, n=2048, inner=1024, seed=9).value
        assert gain == pytest.approx(exact_gain(TOY, [phi], runs), rel=0.05, abs=0.005)
