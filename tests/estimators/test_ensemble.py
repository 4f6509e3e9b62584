from functools import cache

import pytest
import torch
from runs import BOX, WORLD, bits, quick, rows

from sbi_core import InputError, infer
from sbi_core.estimators import Ensemble, RatioEstimator, alice, fit, load_estimator


@cache
def members(n=600):
    return [quick(rows(n), alice, hidden=(16,), seed=seed, max_epochs=20).estimator for seed in range(5)]


def squared_error(estimator):
    """Of the log ratio of each row's theta against the centre of the prior, on fresh rows."""
    test = rows(4000, seed=8)
    with torch.no_grad():
        ratio, truth = (
            f.log_likelihood(test.theta, test.x).double() - f.log_likelihood(0 * test.theta, test.x).double()
            for f in (estimator, WORLD)
        )
    return float(((ratio - truth) ** 2).mean())


def test_the_mean_of_members_is_what_is_read():
    data, both = rows(7), Ensemble(members()[:2])
    one, two = (member.log_likelihood(data.theta, data.x) for member in members()[:2])
    assert torch.allclose(both.log_likelihood(data.theta, data.x), (one + two) / 2, atol=1e-6)
    assert both.log_likelihood(data.theta[:, None], data.x[None, :3]).shape == (7, 3)


def test_an_ensemble_is_better_than_its_members():
    errors = [squared_error(member) for member in members()]
    assert squared_error(Ensemble(members())) < sum(errors) / len(errors)
    assert not squared_error(Ensemble([members()[0]] * 5)) < 0.999 * errors[0], "saboteur: one member five times"


def test_the_spread_is_that_of_differences():
    data, both = rows(50), Ensemble(members())
    spread = both.spread(data.theta, data.x, reference=torch.zeros(2).double())
    each = [m.log_likelihood(data.theta, data.x) - m.log_likelihood(0 * data.theta, data.x) for m in members()]
    assert torch.allclose(spread, torch.stack(each).std(0), atol=1e-5)
    assert bool((both.spread(0 * data.theta, data.x, reference=torch.zeros(2).double()) == 0).all())
    assert bool((both.spread(data.theta, data.x) > 0).any())
    assert not bool((Ensemble([members()[0]] * 3).spread(data.theta, data.x) > 0).any()), "saboteur: no spread"


def test_infer_reads_it():
    posterior = infer(Ensemble(members()), WORLD.prior, [0.5, -0.5])
    assert bool(torch.isfinite(posterior.mean).all())


def test_the_spread_goes_into_what_is_inferred():
    """Its posterior carries those of its members: what differs between them is what training left open."""
    posterior = infer(Ensemble(members()), WORLD.prior, [0.5, -0.5])
    each = torch.stack([infer(member, WORLD.prior, [0.5, -0.5]).mean for member in members()])
    spread = posterior.spread(lambda read: read.mean)
    assert torch.allclose(spread, each.std(0)) and bool((spread > 0).all())
    worst = float((spread / posterior.stddev).max())
    assert posterior.verdicts["spread of trainings"].startswith(f"{worst:.2g} posterior sd between the means of 5")
    same = infer(Ensemble([members()[0]] * 3), WORLD.prior, [0.5, -0.5])
    assert not bool((same.spread(lambda read: read.mean) > 1e-9).any()), "saboteur: one member three times"
    alone = infer(members()[0], WORLD.prior, [0.5, -0.5])
    assert alone.verdicts["spread of trainings"] == "unchecked"
    with pytest.raises(InputError, match="spread needs the posterior of an ensemble"):
        alone.spread(lambda read: read.mean)
    rows_of = infer(Ensemble(members()), WORLD.prior, torch.zeros(3, 2).double(), batch=True)
    assert rows_of.spread(lambda read: read.mean).shape == (3, 2)


def test_it_returns_from_its_folder(tmp_path):
    both = Ensemble(members()[:2])
    back = load_estimator(both.save(tmp_path))
    data = rows(5)
    assert isinstance(back, Ensemble) and bits(back) == bits(both)
    assert torch.equal(back.log_likelihood(data.theta, data.x), both.log_likelihood(data.theta, data.x))


def test_what_does_not_belong_together():
    with pytest.raises(InputError, match="expected at least 2"):
        Ensemble(members()[:1])
    with pytest.raises(InputError, match=r"members\[1\] is not trained"):
        Ensemble([members()[0], RatioEstimator.from_data(rows())])
    other = RatioEstimator(BOX, (2,))
    other.trained.fill_(True)
    with pytest.raises(InputError, match=r"members\[1\] has axes"):
        Ensemble([members()[0], other])


def test_it_is_not_trained_as_a_whole():
    with pytest.raises(InputError, match="one by one"):
        fit(Ensemble(members()), alice, rows(), simulator=WORLD, seed=1, progress=False)
