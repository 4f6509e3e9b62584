import pytest
import torch
from measures import z_of_mean

from sbi_core import InputError, MissingGold, simulate
from sbi_core.inference.frequentist.limits import limits
from sbi_core.inference.frequentist.reweighting import Reweighted
from sbi_core.seeding import seeded
from sbi_core.simulators import GaltonBoard, LinearGaussian, TwoMoons

BOARD = GaltonBoard()
ROWS = simulate(BOARD, 4000, seed=1, progress=False)
THETA = torch.tensor([-0.7]).double()


@pytest.fixture(scope="module")
def source():
    return Reweighted(BOARD, ROWS)


def test_weights_make_the_expectations_of_another_theta(source):
    for theta in (-0.95, -0.7, -0.2):
        at = torch.tensor([theta]).double()
        weight = source.weight(at)
        exact = BOARD.log_probabilities(at).exp()
        place = torch.arange(len(exact)).double()
        mean, spread = exact @ place, exact @ place**2
        x = ROWS.x[:, :1].double()
        assert z_of_mean(weight[:, None], 1.0) < 4
        assert z_of_mean(weight[:, None] * (x**2 - spread)) < 4
        assert z_of_mean(weight[:, None] * (x - mean)) < 4
        assert z_of_mean(x**2 - spread) > 4 or theta == -0.7, "saboteur: no weights"


def test_the_effective_size_is_what_the_variance_says(source):
    """From one theta to another at distance d the joint ratio of a normal latent has E[w^2] = exp(d^2 / sd^2)."""
    world = LinearGaussian(1)
    rows = simulate(world, 20_000, proposal=torch.zeros(1).double(), seed=1, progress=False)
    alone = Reweighted(world, rows)
    for d in (0.5, 1.0, 2.0):
        found = alone.effective(torch.tensor([d]).double()) / 20_000
        exact = torch.tensor(-((d / world.latent_std) ** 2)).exp()
        assert abs(found / exact - 1) < 0.15
        assert abs(found / exact**2 - 1) > 0.1 or d == 0.5, "saboteur: another variance"
    assert source.effective(torch.tensor([-1.0]).double()) < source.effective(THETA) < 4000
    with seeded(1), pytest.raises(InputError, match="fewer than 100"):
        Reweighted(BOARD, ROWS[:50]).events(THETA, 10)


def test_rows_of_two_thetas_are_an_exact_mixture():
    theta = torch.tensor([-0.8, -0.4]).double().repeat(1000)[:, None]
    rows = simulate(BOARD, 2000, proposal=theta, seed=1, progress=False)
    source = Reweighted(BOARD, rows)
    assert source.exact and z_of_mean(source.weight(THETA)[:, None], 1.0) < 4
    assert source.weight(theta[0]).max() <= 2 + 1e-9


def test_limits_from_stored_rows():
    x = BOARD.sample(THETA.expand(20, 1), None, torch.Generator().manual_seed(1))[0]
    options = {"iid": True, "method": "feldman_cousins", "simulator": BOARD, "seed": 1, "toys": 500, "points": 9}
    fresh, stored = limits(BOARD, x, **options), limits(BOARD, x, rows=ROWS[:2000], **options)
    for level in fresh.levels:
        one, other = fresh.interval(level)[0], stored.interval(level)[0]
        for end in ("low", "high"):
            error = (getattr(one, f"{end}_error") ** 2 + getattr(other, f"{end}_error") ** 2) ** 0.5
            assert abs(getattr(one, end) - getattr(other, end)) < 4 * error + 1e-9
    assert "resampled from 2000 simulations, worth" in stored.verdicts["toys"] and not any(
        "rows" in flag for flag in stored.flags
    )
    few = limits(BOARD, x, rows=ROWS[:500], **options)
    assert any("30 times as many" in flag for flag in few.flags)


def test_wrong_gold_is_flagged():
    class Wrong(GaltonBoard):
        def log_joint(self, theta, x, z, design):
            return -1 * super().log_joint(theta, x, z, design)

    flags = Reweighted(Wrong(), ROWS[:2000]).report(THETA[None] - 0.2, 1)[1]
    assert any("check_gold" in flag for flag in flags)
    assert not Reweighted(BOARD, ROWS[:2000]).report(THETA[None] - 0.2, 1)[1]


def test_rows_that_cannot_be_reweighted():
    world = TwoMoons()
    rows = simulate(world, 100, seed=1, progress=False)
    if not world.has_gold:
        with pytest.raises(MissingGold):
            Reweighted(world, rows)
    with pytest.raises(MissingGold):
        Reweighted(None, ROWS)
    designs = torch.tensor([[15.0, 20.0], [15.0, 10.0]]).repeat(50, 1)
    with pytest.raises(InputError, match="several designs"):
        Reweighted(BOARD, simulate(BOARD, 100, design=designs, seed=1, progress=False))
    one = simulate(BOARD, 200, design=designs[0], seed=1, progress=False)
    options = {"iid": True, "simulator": BOARD, "method": "neyman", "rows": one}
    for design in (None, designs[1]):
        with pytest.raises(InputError, match="simulated at design"):
            limits(BOARD, [[15.0]] * 4, design=design, **options)


def test_two_parameters():
    world = LinearGaussian(2)
    rows = simulate(world, 5000, seed=1, progress=False)
    source = Reweighted(world, rows)
    theta = torch.tensor([0.5, -0.5]).double()
    weight = source.weight(theta)
    assert z_of_mean(weight[:, None] * (rows.x - theta)) < 4
    assert z_of_mean(rows.x - theta) > 4, "saboteur: no weights"
