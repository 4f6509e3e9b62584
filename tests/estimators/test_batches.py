"""What the rows give a loss: gold, stored or fresh, and which rows are refused."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from runs import BOX, WORLD, Weak, bits, quick, rows, with_gold

from sbi_core import (
    FunctionSimulator,
    GoldError,
    InputError,
    MissingGold,
    Simulations,
    joint_score,
    simulate,
)
from sbi_core.estimators import RatioEstimator, alice, alices, carl, fit, rascal, rolr
from sbi_core.estimators.batches import prepare
from sbi_core.seeding import seeded
from sbi_core.simulators import LinearGaussian

# Gold


def function_simulator():
    return FunctionSimulator(lambda theta, rng: theta + rng.standard_normal(theta.shape), BOX)


def test_missing_gold_of_a_simulator_without_log_joint():
    world = function_simulator()
    data = simulate(world, 50, seed=1, progress=False)
    with pytest.raises(MissingGold) as caught:
        quick(data, simulator=world)
    assert str(caught.value) == (
        "alices needs a joint score, and simulator 'FunctionSimulator' has no log_joint. Use loss=carl, or give the "
        "simulator a log_joint."
    )
    quick(data, carl, simulator=world)


@pytest.mark.parametrize("loss", [alice, alices, partial(alices, alpha=0.1)])
@pytest.mark.parametrize(
    ("world", "words"),
    [(None, "pass fit(simulator=...)"), (WORLD, "the simulations were stored without z. Use loss=carl, or simulate")],
)
def test_missing_gold_says_why(loss, world, words):
    data = Simulations.from_arrays(rows().theta, rows().x, parameters=WORLD.parameters)
    with pytest.raises(MissingGold) as caught:
        quick(data, loss, simulator=world)
    name, what = ("alice", "a joint log ratio") if loss is alice else ("alices", "a joint score")
    assert str(caught.value).startswith(f"{name} needs {what}, and ") and words in str(caught.value)


@pytest.mark.parametrize("loss", [alice, alices])
def test_wrong_gold_stops_unless_told_otherwise(loss):
    data = rows(5000)
    with pytest.raises(GoldError, match="theta_1"):
        quick(data, loss, simulator=Weak(2))
    assert quick(data, loss, simulator=Weak(2), gold_check=False, max_epochs=1).gold is None
    stored = replace(with_gold(data), joint_score=0.8 * joint_score(WORLD, data))
    with pytest.raises(GoldError, match="score"):
        quick(stored, loss, simulator=None)


def test_stored_gold_serves_without_z_and_without_a_simulator():
    data = with_gold(rows())
    run = quick(data, simulator=None)
    assert run.gold.passed
    with seeded(3):
        shuffled = replace(data, joint_log_ratio=data.joint_log_ratio[torch.randperm(len(data))])
    assert bits(quick(data, simulator=None, gold_check=False)) == bits(run)
    assert bits(quick(shuffled, simulator=None, gold_check=False)) != bits(run), "the stored ratios are what is read"


def test_stored_contrasts_are_read_and_fresh_ones_preferred():
    """Contrasts in a table that has z are drawn afresh where the simulator can tell their ratios."""
    data = rows()
    stored = replace(with_gold(data), z=data.z, info=data.info)
    assert bits(quick(stored)) == bits(quick(data))
    assert bits(quick(stored, simulator=None)) != bits(quick(data))


def test_carl_needs_nothing_but_rows():
    data = Simulations.from_arrays(rows().theta.numpy(), rows().x.numpy())
    run = quick(data, carl, simulator=None)
    assert run.gold is None and np.isfinite(run.history["validation"]).all()


def test_parameters_are_matched_by_name():
    """Rows, estimator and simulator may each have an order of their own."""
    world = LinearGaussian(matrix=[[1.0, 0.0], [1.0, 3.0]])
    data = replace(simulate(world, 200, seed=1, progress=False), theta_alt=None)
    data = replace(data, info=replace(data.info, proposal=None))
    turned = data.reordered(world.parameters[::-1])
    head, turned_head = (RatioEstimator.from_data(some, hidden=(8,)) for some in (data, turned))
    options = {"simulator": world, "seed": 1, "max_epochs": 3, "progress": False, "gold_check": False}
    assert not torch.equal(data.theta, turned.theta) and torch.equal(data.theta, turned.theta.flip(1))
    for loss in (carl, alices):
        assert bits(fit(head, loss, turned, **options)) == bits(fit(head, loss, data, **options))
        assert bits(fit(turned_head, loss, turned, **options)) == bits(fit(turned_head, loss, data, **options))
    right = fit(turned_head, alices, data, **options).estimator
    wrong = fit(turned_head, alices, replace(data, theta=data.theta.flip(1)), **options).estimator
    assert bits(right) != bits(wrong), "saboteur: columns exchanged, names not"


def test_gold_is_that_of_the_simulator_whatever_the_order_of_the_estimator():
    """Without this, alices trains towards the score of another parameter."""
    matrix = torch.tensor([[1.0, 0.0], [1.0, 3.0]]).double()
    world = LinearGaussian(matrix=matrix)
    data = simulate(world, 50, seed=1, progress=False)
    source, _ = prepare(alices, data.reordered(world.parameters[::-1]), world, contrasts=2, check=False, seed=1)
    with seeded(1):
        batch = source.batch()
    away = data.z.double() - batch.theta.flip(-1) @ matrix.T
    assert torch.allclose(batch.joint_score, (away @ matrix).flip(-1) / 4, rtol=1e-10, atol=1e-12)
    alt = data.z.double()[:, None] - batch.theta_alt.flip(-1) @ matrix.T
    ratio = ((alt**2).sum(-1) - (away**2).sum(-1)[:, None]) / 8
    assert torch.allclose(batch.joint_log_ratio, ratio, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(batch.joint_score, away @ matrix / 4, rtol=0.1), "saboteur: the other order"


def test_other_parameters_are_refused():
    head = RatioEstimator(BOX, (2,))
    with pytest.raises(InputError, match="has no parameter 'a'"):
        fit(head, carl, rows(), progress=False)


# Rows


@pytest.mark.parametrize("n", [0, 1, 5, 19])
def test_too_few_rows(n):
    with pytest.raises(InputError) as caught:
        quick(rows()[:n])
    assert f"simulations: {n} rows, expected at least 20" in str(caught.value)


@pytest.mark.filterwarnings("ignore::sbi_core.errors.SbiWarning")
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_rows_that_failed_need_a_policy(value):
    x = rows().x.clone()
    x[torch.arange(3, 33)] = value
    data = Simulations.from_arrays(rows().theta, x, parameters=WORLD.parameters)
    with pytest.raises(InputError) as caught:
        quick(data, carl, simulator=None)
    assert all(word in str(caught.value) for word in ("x is", "inf", "30 of 300", "[3, 4, 5, 6, 7]", "policy", "drop"))
    run = quick(data, carl, simulator=None, invalid="drop")
    kept = data[data.valid]
    assert sum(run.rows) == 270 and "30 of 300" in run.flags[0] and "left out" in run.flags[0]
    assert bits(run) == bits(quick(kept, carl, simulator=None))
    with pytest.raises(InputError, match="invalid = 'skip'"):
        quick(data, carl, invalid="skip")


def test_every_row_failed():
    data = Simulations.from_arrays(rows().theta, rows().x * torch.nan, parameters=WORLD.parameters)
    for policy in ("error", "drop"):
        with pytest.raises(InputError, match=r"x is not finite.*300 of 300.*0 valid"):
            quick(data, carl, invalid=policy)


@pytest.mark.parametrize("columns", [[1], [0, 1]])
def test_theta_without_spread(columns):
    theta = rows().theta.clone()
    theta[:, columns] = 0.5
    data = Simulations.from_arrays(theta, rows().x, parameters=WORLD.parameters)
    with pytest.raises(InputError, match=rf"theta column {columns[0]} \('theta_{columns[0] + 1}'\) is constant at 0.5"):
        quick(data, carl)


@pytest.mark.parametrize("loss", [rolr, rascal])
def test_clipped_ratios_are_counted_and_said(loss):
    """Stored joint ratios of e^300 in five rows; where they are made afresh, the exchange keeps them small."""
    data = with_gold(rows())
    far = replace(data, joint_log_ratio=data.joint_log_ratio.index_fill(0, torch.arange(5), -300.0))
    with pytest.warns(UserWarning, match=r"joint ratios above e\^30 in [345] of 270 rows were clipped"):
        run = quick(far, loss, simulator=None, gold_check=False)
    assert np.isfinite(run.history["validation"]).all() and any("clipped" in flag for flag in run.flags)
    for clean in (data, rows()):
        assert not quick(clean, loss, simulator=WORLD, gold_check=False).flags
    assert not quick(far, alice, simulator=None, gold_check=False).flags, "alice clips nothing"
