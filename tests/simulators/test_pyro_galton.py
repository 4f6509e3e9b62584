"""The Galton board as a dozen lines of Pyro, held against the one mined by hand."""

import math

import pytest
import torch
from galton_laws import at, design, p_value, slots_off, walk
from pyro_programs import board, turns_of

from sbi_core import UniformPrior, check_gold, joint_score, simulate

BOARD, HAND = board()
SMALL, SMALL_HAND = board(6, 5)


@pytest.mark.parametrize(("program", "hand"), [(BOARD, HAND), (SMALL, SMALL_HAND)])
@pytest.mark.parametrize("designed", [False, True])
def test_gold_is_that_mined_by_hand(program, hand, designed):
    """log p and score of the same paths, at their own thetas and at others."""
    told = UniformPrior(hand.designs) if designed else None
    rows = simulate(hand, 2000, seed=1, design=told, progress=False)
    turns = turns_of(rows, (hand.n_nails - 1) // 2)
    for theta in (rows.theta, rows.theta.roll(1, 0)):
        leaves = [theta.clone().requires_grad_() for _ in range(2)]
        found = program.log_joint(leaves[0], rows.x.double(), turns, rows.design)
        exact = hand.log_joint(leaves[1], rows.x.double(), rows.z.double(), rows.design)
        assert torch.allclose(found, exact, rtol=0, atol=1e-12)
        pairs = zip((found, exact), leaves, strict=True)
        slope, wanted = (torch.autograd.grad(value.sum(), leaf)[0] for value, leaf in pairs)
        assert torch.allclose(slope, wanted, rtol=1e-12, atol=1e-12)
        off = hand.log_joint(theta + 1e-10, rows.x.double(), rows.z.double(), rows.design)
        assert not torch.allclose(found, off, rtol=0, atol=1e-12), "saboteur: a theta nearby"


@pytest.mark.parametrize("pair", [None, (2, 6), (0, 6), (4, 6), (0, 3), (4, 1)])
def test_log_joint_is_the_path_probability(pair):
    """Straight from the rules, of the program's own paths, whose last position is x."""
    rows = simulate(SMALL, 200, seed=1, design=design(pair), progress=False)
    value = SMALL.log_joint(rows.theta, rows.x, rows.z.double(), rows.design)
    for k in range(200):
        position, chance = walk(SMALL_HAND, float(rows.theta[k]), pair, rows.z[k].bool().tolist())
        assert position == rows.x[k].item() and float(value[k]) == pytest.approx(math.log(chance), abs=1e-12)


@pytest.mark.parametrize("pair", [None, (0, 20), (30, 20), (29, 10)])
def test_sampled_slots_follow_the_exact_likelihood(pair):
    assert p_value(BOARD, HAND, -0.3, pair, -0.3) > 1e-4 > p_value(BOARD, HAND, -0.3, pair, -0.2)


@pytest.mark.parametrize("pair", [None, (2, 6), (0, 3), (4, 1)])
def test_sampled_slots_of_a_small_board(pair):
    assert p_value(SMALL, SMALL_HAND, -0.35, pair, -0.35, 5000) > 1e-4


@pytest.mark.parametrize("pair", [None, (0, 20), (27, 15)])
def test_mean_joint_score_at_each_slot_is_the_score(pair):
    assert slots_off(BOARD, HAND, pair, 0.0) < 4 < slots_off(BOARD, HAND, pair, 0.1)


def test_information_is_that_of_the_path():
    rows = simulate(BOARD, 5000, seed=3, proposal=at(-0.8), progress=False)
    square = joint_score(BOARD, rows) ** 2
    exact = float(HAND.fisher_information(at(-0.8), latent=True))
    assert abs(float(square.mean()) - exact) < 4 * float(square.std()) / 5000**0.5 < 0.2 * exact


def test_gold_passes():
    rows = simulate(BOARD, 2000, seed=1, design=UniformPrior(BOARD.designs), progress=False)
    check_gold(BOARD, rows).raise_if_failed()
