import itertools
import math

import pytest
import torch
from galton_laws import at, design, p_value, slots_off, walk

from sbi_core import InputError, MissingGold, UniformPrior, joint_score, simulate
from sbi_core.simulators import GaltonBoard

BOARD = GaltonBoard()
SMALL = GaltonBoard(6, 5)
DESIGNS = [None, (2, 6), (0, 6), (4, 6), (0, 3), (4, 1)]  # drop, rows: the walls of the small board are near


def brute_force(board, theta, pair):
    """p(slot) by going through every path."""
    rows = board.n_rows if pair is None else pair[1]
    slots = torch.zeros(board.n_nails + 1, dtype=torch.float64)
    for turns in itertools.product([True, False], repeat=rows):
        position, chance = walk(board, theta, pair, turns)
        if chance > 0:
            slots[position] += chance
    return slots


def test_published_log_ratios():
    x = at(5, 10, 15, 20, 25)[:, None]
    ratio = BOARD.log_likelihood(at(-0.8), x) - BOARD.log_likelihood(at(-0.6), x)
    assert torch.allclose(ratio, at(0.7436, 0.1362, -0.3090, 0.1586, 0.7214), atol=5e-5)


def test_published_information():
    assert float(BOARD.fisher_information(at(-0.8))) == pytest.approx(1.41232, abs=5e-6)
    assert float(BOARD.fisher_information(at(-0.8), latent=True)) == pytest.approx(2.35469, abs=5e-6)


@pytest.mark.parametrize("pair", DESIGNS)
@pytest.mark.parametrize("theta", [-1.0, -0.35, 0.4])
def test_likelihood_is_the_sum_over_paths(pair, theta):
    slots = SMALL.log_probabilities(at(theta), design(pair)).exp()
    assert torch.allclose(slots, brute_force(SMALL, theta, pair), atol=1e-14)
    assert float(slots.sum()) == pytest.approx(1, abs=1e-14)
    if (pair or (2, 6))[1] > 2:
        assert not torch.allclose(slots, brute_force(SMALL, theta + 0.1, pair), atol=1e-4)


@pytest.mark.parametrize("pair", DESIGNS)
def test_log_joint_is_the_path_probability(pair):
    rows = simulate(SMALL, 200, seed=1, design=design(pair), progress=False)
    start, read = pair or (2, 6)
    value = SMALL.log_joint(rows.theta, rows.x, rows.z.double(), rows.design)
    for k in range(200):
        path = [start, *rows.z[k].int().tolist()]
        turns = [path[row + 1] == path[row] - row % 2 for row in range(read)]
        position, chance = walk(SMALL, float(rows.theta[k]), pair, turns)
        assert position == rows.x[k].item() and float(value[k]) == pytest.approx(math.log(chance), abs=1e-12)


@pytest.mark.parametrize("pair", DESIGNS)
def test_information_is_that_of_every_path(pair):
    theta, step = -0.35, 1e-5
    up, down, mid = (brute_force(SMALL, theta + h, pair) for h in (step, -step, 0.0))
    reached = mid > 0
    in_slot = ((up - down)[reached] ** 2 / (4 * step**2) / mid[reached]).sum()
    rows = SMALL.n_rows if pair is None else pair[1]
    in_path = 0.0
    for turns in itertools.product([True, False], repeat=rows):
        high, low, chance = (walk(SMALL, theta + h, pair, turns)[1] for h in (step, -step, 0.0))
        in_path += (high - low) ** 2 / (4 * step**2) / chance if chance > 0 else 0.0
    found = [float(SMALL.fisher_information(at(theta), design(pair), latent=latent)) for latent in (False, True)]
    assert found == pytest.approx([float(in_slot), in_path], abs=1e-7)
    assert found[0] <= found[1] + 1e-12, "the path tells at least as much as the slot"


def test_information_grows_with_the_rows_read():
    pairs = torch.stack([torch.full((20,), 15.0), torch.arange(1.0, 21.0)], 1)
    for latent in (False, True):
        information = BOARD.fisher_information(at(-0.8), pairs, latent=latent)
        assert information.shape == (20, 1, 1)
        if latent:
            assert (information.flatten().diff() >= 0).all()
    gap = BOARD.fisher_information(at(-0.8), pairs, latent=True) - BOARD.fisher_information(at(-0.8), pairs)
    assert (gap > -1e-12).all()


@pytest.mark.parametrize("pair", [None, (15, 20), (0, 20), (30, 20), (2, 9), (29, 10), (30, 1)])
def test_sampled_slots_follow_the_exact_likelihood(pair):
    assert p_value(BOARD, BOARD, -0.3, pair, -0.3) > 1e-4
    if pair is None or pair[1] > 1:
        assert p_value(BOARD, BOARD, -0.3, pair, -0.2) < 1e-4, "saboteur: another theta"


@pytest.mark.parametrize("pair", DESIGNS)
def test_sampled_slots_of_a_small_board(pair):
    assert p_value(SMALL, SMALL, -0.35, pair, -0.35, 5000) > 1e-4


def test_paths_obey_the_board():
    rows = simulate(BOARD, 2000, seed=1, design=UniformPrior(BOARD.designs), progress=False)
    assert torch.equal(rows.x[:, 0], rows.z[:, -1]) and rows.z.shape == (2000, 20) and rows.valid.all()
    path = torch.cat([rows.design[:, :1], rows.z.double()], 1)
    step, number = path.diff(dim=1), torch.arange(20)
    assert (step[:, ::2] >= 0).all() and (step[:, 1::2] <= 0).all() and step.abs().max() == 1
    assert (step.abs() * (number >= rows.design[:, 1:])).max() == 0, "rows that are not read do nothing"
    assert path.min() == 0 and path.max() == 31, "both walls are reached"


def test_design_of_the_default_is_the_default():
    default = simulate(BOARD, 300, seed=1, progress=False)
    told = simulate(BOARD, 300, seed=1, design=at(15, 20), progress=False)
    assert torch.equal(default.z, told.z)
    assert torch.allclose(joint_score(BOARD, default), joint_score(BOARD, told), atol=1e-12)
    assert torch.equal(BOARD.log_probabilities(at(-0.8)), BOARD.log_probabilities(at(-0.8), at(15, 20)))


@pytest.mark.parametrize("pair", [None, (0, 20), (30, 13)])
def test_joint_score_is_the_slope_of_log_joint(pair):
    rows = simulate(BOARD, 100, seed=1, design=design(pair), progress=False)
    score, step = joint_score(BOARD, rows)[:, 0], 1e-5
    high, low = (BOARD.log_joint(rows.theta + h, rows.x, rows.z.double(), rows.design) for h in (step, -step))
    assert torch.allclose(score, (high - low) / (2 * step), atol=1e-7)
    assert not torch.allclose(joint_score(BOARD, rows, rows.theta + 0.01)[:, 0], (high - low) / (2 * step), atol=1e-4)


def test_steps_at_a_wall_carry_no_gradient():
    board, left_wall = GaltonBoard(4, 5), torch.zeros(1, 4).double()
    theta = at(-0.5)[:, None].requires_grad_()
    value = board.log_joint(theta, left_wall, left_wall, at(0, 2)[None])
    assert torch.autograd.grad(value.sum(), theta)[0].item() == 0
    whole = board.log_joint(theta.detach(), left_wall, left_wall, at(0, 4)[None])
    by_hand = sum(math.log(p) for p in (0.5, (1 - f(2, 4)) / 2 + f(2, 4) / (1 + math.exp(-5))))
    assert float(whole) == pytest.approx(by_hand, abs=1e-12), "rows 1 and 3 are certain"


def f(row, rows):
    return math.sin(math.pi * row / (rows - 1))


@pytest.mark.parametrize("pair", [None, (0, 20), (27, 15)])
def test_mean_joint_score_at_each_slot_is_the_score(pair):
    assert slots_off(BOARD, BOARD, pair, 0.0) < 4 < slots_off(BOARD, BOARD, pair, 0.1)


@pytest.mark.parametrize("pair", [None, (0, 20), (30, 7)])
def test_score_is_the_gradient_of_the_log_likelihood(pair):
    theta = torch.linspace(-1, 0, 7).double()[:, None].requires_grad_()
    slots = BOARD.log_probabilities(at(-0.5), design(pair)).isfinite().nonzero().double()
    x = slots[torch.arange(7) % len(slots)]
    gradient = torch.autograd.grad(BOARD.log_likelihood(theta, x, design(pair)).sum(), theta)[0]
    assert torch.allclose(BOARD.score(theta.detach(), x, design(pair)), gradient, atol=1e-10)


def test_mean_score_is_zero_and_its_square_the_information():
    p = BOARD.log_probabilities(at(-0.8)).exp()
    score = BOARD.score(at(-0.8), torch.arange(32.0)[:, None])[:, 0]
    assert float((p * score).sum()) == pytest.approx(0, abs=1e-12)
    assert float((p * score**2).sum()) == pytest.approx(float(BOARD.fisher_information(at(-0.8))), abs=1e-12)


def test_unreachable_slots_have_probability_zero_and_no_nan():
    theta = at(-0.8).requires_grad_()
    log_p = BOARD.log_probabilities(theta, at(0, 3))
    assert torch.isneginf(log_p[4:]).all() and log_p[:2].isfinite().all()
    assert torch.autograd.grad(log_p[:2].sum(), theta)[0].isfinite().all()


def test_shapes_broadcast():
    theta, x = torch.linspace(-1, 0, 5).double()[:, None, None], torch.arange(10.0, 14.0)[:, None]
    pairs = torch.tensor([[15.0, 20.0]]).expand(4, 2)
    one = BOARD.log_likelihood(theta[2, 0], x[1])
    for value in (BOARD.log_likelihood(theta, x), BOARD.log_likelihood(theta, x, pairs)):
        assert value.shape == (5, 4) and torch.allclose(value[2, 1], one)
    assert BOARD.score(theta, x).shape == (5, 4, 1)
    assert BOARD.fisher_information(theta).shape == (5, 1, 1, 1)
    assert BOARD.log_probabilities(theta).shape == (5, 1, 32)
    assert torch.allclose(BOARD.observe(x)(theta), BOARD.log_likelihood(theta, x))


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        ((31, 20), "'drop' must be a whole number from 0 to 30"),
        ((-1, 20), "'drop'"),
        ((15, 0), "'rows' must be a whole number from 1 to 20"),
        ((15, 21), "'rows'"),
        ((15.5, 20), "'drop'"),
        ((15, math.nan), "'rows'"),
    ],
)
def test_design_off_the_board_is_refused(pair, words):
    with pytest.raises(InputError, match=words):
        BOARD.log_likelihood(at(-0.5), at(15), at(*pair))
    with pytest.raises(InputError, match=words):
        simulate(BOARD, 10, design=at(*pair), progress=False)


@pytest.mark.parametrize("size", [(1, 31), (20, 2)])
def test_board_that_is_no_board_is_refused(size):
    with pytest.raises(InputError, match="at least 2 rows and 3 nails"):
        GaltonBoard(*size)


def test_path_is_needed_for_gold():
    with pytest.raises(MissingGold, match="'GaltonBoard'"):
        BOARD.log_joint(at(-0.5)[:, None], None, None, None)


def test_picture_is_drawn():
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    BOARD.draw(axes, simulate(BOARD, 20, seed=1, progress=False))
    assert axes.has_data() and axes.get_xlabel()
