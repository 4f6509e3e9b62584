import pytest
import torch
from measures import z_of_mean
from toys import GlobalState, Shift

from sbi_core import InputError, MissingGold, Simulations, check_gold, joint_log_ratio, joint_score, simulate
from sbi_core.gold import log_joint
from sbi_core.simulators import GaltonBoard, LinearGaussian

WORLD = LinearGaussian(matrix=[[1.0, 0.0], [1.0, 2.0], [0.0, 1.0]])
BOARD = GaltonBoard()
SETTINGS = {
    "board": (BOARD, torch.tensor([-0.7]), torch.tensor([-0.6])),
    "world": (WORLD, torch.zeros(2), torch.full((2,), 0.3)),
}


@pytest.fixture(scope="module")
def rows():
    return simulate(WORLD, 400, seed=1, progress=False)


def test_joint_score_is_the_closed_form(rows):
    score = joint_score(WORLD, rows)
    assert score.shape == (400, 2) and score.dtype == torch.float64 and not score.requires_grad
    exact = (rows.z - rows.theta @ WORLD.matrix.T) @ WORLD.matrix / 4
    assert torch.allclose(score, exact, atol=1e-12)
    with_x = (rows.x - rows.theta @ WORLD.matrix.T) @ WORLD.matrix / 4
    assert not torch.allclose(score, with_x, atol=1e-2), "saboteur: x where z belongs"


def test_joint_log_ratio_is_the_closed_form(rows):
    theta0, theta1 = torch.tensor([0.3, -1.0]), rows.theta + 1
    exact = [-((rows.z - t.double() @ WORLD.matrix.T) ** 2).sum(1) / 8 for t in (theta0, theta1)]
    ratio = joint_log_ratio(WORLD, rows, theta0, theta1)
    assert ratio.shape == (400,) and ratio.dtype == torch.float64
    assert torch.allclose(ratio, exact[0] - exact[1], atol=1e-12)


@pytest.mark.parametrize("form", [list, tuple, torch.tensor, lambda t: torch.tensor(t).numpy()])
def test_theta_may_be_one_or_one_per_row(rows, form):
    one = [0.3, -1.0]
    many = torch.tensor(one).double().expand(400, 2)
    assert torch.allclose(joint_score(WORLD, rows, form(one)), joint_score(WORLD, rows, many), atol=1e-6)
    assert torch.allclose(joint_score(WORLD, rows, rows.theta), joint_score(WORLD, rows), atol=1e-14)


@pytest.mark.parametrize("value", [0.3, [0.3], [0.1, 0.2, 0.3], torch.zeros(399, 2), torch.zeros(400, 1)])
def test_theta_of_another_shape_is_refused(rows, value):
    for call in (lambda: joint_log_ratio(WORLD, rows, [0.0, 0.0], value), lambda: joint_score(WORLD, rows, value)):
        with pytest.raises(InputError, match=r"theta1? has shape \(.*expected \(2,\) or \(400, 2\)"):
            call()


@pytest.mark.parametrize("name", SETTINGS)
def test_ratio_is_antisymmetric_and_transitive(name):
    simulator, a, b = SETTINGS[name]
    rows, c = simulate(simulator, 50, seed=1, progress=False), a + 0.05
    ab, bc, ac, ba = (joint_log_ratio(simulator, rows, *pair) for pair in [(a, b), (b, c), (a, c), (b, a)])
    assert torch.equal(ab, -ba) and torch.allclose(ab + bc, ac, atol=1e-12)


@pytest.mark.parametrize("name", SETTINGS)
def test_score_is_the_slope_of_the_ratio(name):
    simulator = SETTINGS[name][0]
    rows = simulate(simulator, 50, seed=1, progress=False)
    score, step = joint_score(simulator, rows), 1e-5
    for axis in range(score.shape[1]):
        move = step * torch.eye(score.shape[1]).double()[axis]
        slope = joint_log_ratio(simulator, rows, rows.theta + move, rows.theta - move) / (2 * step)
        assert torch.allclose(slope, score[:, axis], atol=1e-6)


@pytest.mark.parametrize("name", SETTINGS)
def test_mean_ratio_is_one_and_mean_score_zero(name):
    simulator, near, theta = SETTINGS[name]
    rows = simulate(simulator, 5000, proposal=theta, seed=3, progress=False)
    ratio = joint_log_ratio(simulator, rows, near, theta)
    assert z_of_mean(ratio.exp(), 1) < 4
    assert z_of_mean((-ratio).exp(), 1) > 4, "saboteur: the ratio upside down"
    assert z_of_mean(joint_score(simulator, rows)) < 4
    assert z_of_mean(joint_score(simulator, rows, near)) > 4, "saboteur: the score at another theta"


def test_parameters_are_matched_by_name(rows):
    swapped = rows.reordered(WORLD.parameters[::-1])
    assert torch.equal(swapped.theta, rows.theta[:, [1, 0]])
    assert torch.equal(joint_score(WORLD, swapped), joint_score(WORLD, rows)[:, [1, 0]])
    assert torch.equal(
        joint_log_ratio(WORLD, swapped, [0.0, 0.1], [0.2, 0.0]), joint_log_ratio(WORLD, rows, [0.1, 0.0], [0.0, 0.2])
    )
    misread = Simulations(swapped.theta, rows.x, rows.info, z=rows.z)
    by_place = joint_score(WORLD, misread)[:, [1, 0]]
    assert not torch.allclose(by_place, joint_score(WORLD, rows)[:, [1, 0]]), "saboteur: matched by place"
    other = Simulations.from_arrays(rows.theta, rows.x, z=rows.z)
    with pytest.raises(InputError, match="no parameter 'theta_2'"):
        joint_score(WORLD, other)


def test_store_is_read_like_rows(tmp_path, rows):
    store = simulate(WORLD, 400, seed=1, store=tmp_path / "run.zarr", progress=False)
    assert torch.equal(joint_score(WORLD, store), joint_score(WORLD, rows))


def test_many_rows_are_worked_through_in_parts():
    rows = simulate(Shift(), 45_000, seed=1, progress=False)
    assert torch.allclose(joint_score(Shift(), rows), rows.z - rows.theta, atol=1e-12)
    assert joint_log_ratio(Shift(), rows, [0.1], [0.2]).shape == (45_000,)


def test_no_rows_have_no_gold(rows):
    assert joint_score(WORLD, rows[:0]).shape == (0, 2)
    assert joint_log_ratio(WORLD, rows[:0], [0.0, 0.0], [1.0, 1.0]).shape == (0,)


def test_missing_gold_says_what_is_missing(rows):
    black_box = simulate(GlobalState(), 5, seed=1, progress=False)
    with pytest.raises(MissingGold, match="'GlobalState' has no log_joint"):
        joint_score(GlobalState(), black_box)
    without = Simulations(rows.theta, rows.x, rows.info)
    with pytest.raises(MissingGold, match=r"'LinearGaussian'.* without z"):
        joint_log_ratio(WORLD, without, [0.0, 0.0], [1.0, 1.0])


def test_log_joint_must_be_one_float64_per_row():
    class Careless(Shift):
        def log_joint(self, theta, x, z, design):
            return -((z - theta) ** 2) / 2

    class Single(Shift):
        def log_joint(self, theta, x, z, design):
            return super().log_joint(theta, x, z, design).float()

    for simulator, words in ((Careless(), r"\(5, 1\)"), (Single(), "float32")):
        with pytest.raises(InputError, match=rf"log_joint has .*{words}.*expected \(5,\) and torch.float64"):
            joint_score(simulator, simulate(Shift(), 5, seed=1, progress=False))


def test_gold_that_does_not_know_theta_has_score_zero():
    class Flat(Shift):
        def log_joint(self, theta, x, z, design):
            return -(z**2).sum(1)

    rows = simulate(Flat(), 5, seed=1, progress=False)
    assert torch.equal(joint_score(Flat(), rows), torch.zeros(5, 1).double())


def test_large_x_is_read_in_blocks(monkeypatch):
    """Only so much of it is in float64 at a time, and nothing else changes."""
    seen = []

    class Spied(LinearGaussian):
        def log_joint(self, theta, x, z, design):
            seen.append(x.numel())
            return super().log_joint(theta, x, z, design)

    world = Spied(3)
    rows = simulate(world, 1000, seed=1, progress=False)
    other = rows.theta.roll(1, 0)

    def everything():
        seen.clear()
        gold = [
            joint_score(world, rows),
            joint_log_ratio(world, rows, rows.theta, other),
            log_joint(world, rows, other),
        ]
        return gold, torch.tensor([test.z for test in check_gold(world, rows).rows]), max(seen)

    gold, z, most = everything()
    monkeypatch.setattr("sbi_core.gold._NUMBERS", 300)
    pieces, again, fewer = everything()
    assert most == 3000 and fewer == 300
    assert all(torch.allclose(one, two, rtol=1e-12) for one, two in zip(gold, pieces, strict=True))
    assert torch.allclose(z, again, rtol=1e-3, atol=1e-9)
    assert joint_score(world, rows[:0]).shape == (0, 3) and log_joint(world, rows[:0], other[:0]).shape == (0,)
