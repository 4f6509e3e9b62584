import json

import pytest
import torch
from measures import z_of_mean
from torch import distributions as td
from torch.distributions import Independent

from sbi_core import InputError, Parameter, UniformPrior
from sbi_core.priors import check_prior, describe, restore

WHOLE = Parameter("k", -1, 3, integer=True)
REAL = Parameter("m", -2.0, 6.0)
TWO = torch.tensor([0.5, 2.0]).double()
RECORDED = {
    "Uniform": td.Uniform(-TWO, TWO),
    "Normal": td.Normal(TWO, TWO),
    "LogNormal": td.LogNormal(TWO, TWO),
    "HalfNormal": td.HalfNormal(TWO),
    "Beta": td.Beta(TWO, 3 * TWO),
    "Gamma": td.Gamma(TWO, TWO),
    "Exponential": td.Exponential(TWO),
    "Laplace": td.Laplace(TWO, TWO),
    "Cauchy": td.Cauchy(TWO, TWO),
    "StudentT": td.StudentT(TWO + 2, TWO, TWO),
}


def mixture(shift):
    parts = Independent(td.Normal(torch.tensor([[0.0], [shift]]), torch.ones(2, 1)), 1)
    return td.MixtureSameFamily(td.Categorical(torch.ones(2)), parts)


def draws(prior, n=20_000):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return prior.sample((n,))


def test_uniform_prior_has_its_moments():
    prior = UniformPrior([REAL, WHOLE])
    theta = draws(prior)
    assert theta.shape == (20_000, 2) and theta.dtype == torch.float64
    assert z_of_mean(theta - prior.mean) < 4
    assert z_of_mean((theta - prior.mean) ** 2 - prior.variance) < 4
    assert z_of_mean(theta - prior.mean - 0.1) > 4, "saboteur: a mean that is off"
    assert z_of_mean((theta - prior.mean) ** 2 - 16 / 12) > 4, "saboteur: the variance of a real number for both"


def test_uniform_prior_reaches_every_whole_number_and_both_ends():
    assert draws(UniformPrior([WHOLE])).unique().tolist() == [-1, 0, 1, 2, 3]


def test_uniform_prior_from_the_unit_cube():
    """Quantiles, axis by axis; a whole number takes an equal share of the unit interval."""
    prior, unit = (
        UniformPrior([REAL, WHOLE]),
        torch.tensor([[0.0, 0.0], [0.25, 0.39], [0.5, 0.41], [1.0, 1.0]]).double(),
    )
    assert prior.from_unit(unit).tolist() == [[-2, -1], [0, 0], [2, 1], [6, 3]]
    assert UniformPrior([REAL]).from_unit(unit[:, :1].clone()).tolist() == [[-2], [0], [2], [6]]
    many = prior.from_unit(torch.rand(5, 1000, 2, generator=torch.Generator().manual_seed(1)).double())
    assert many.shape == (5, 1000, 2) and prior.support.check(many).all() and prior.log_prob(many).isfinite().all()
    assert not prior.support.check(prior.from_unit(unit + 0.3)).all(), "saboteur: not of the unit cube"


def test_uniform_prior_is_normalised():
    prior = UniformPrior([REAL, WHOLE])
    theta = torch.tensor([[-2, -1], [6, 3], [0, 0.5], [6.1, 0], [0, 4]])
    density = -torch.log(torch.tensor(8 * 5.0)).double()
    assert torch.allclose(prior.log_prob(theta)[:2], density.expand(2))
    assert torch.isneginf(prior.log_prob(theta)[2:]).all()
    assert prior.support.check(theta).tolist() == [True, True, True, False, False]


def test_uniform_prior_needs_a_finite_range():
    with pytest.raises(InputError, match=r"'mass' ranges from 0 to inf.*finite"):
        UniformPrior([REAL, Parameter("mass", 0, float("inf"))])


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_prior_returns_from_plain_data(name):
    prior = Independent(RECORDED[name], 1)
    back = restore(json.loads(json.dumps(describe(prior))))
    theta = draws(prior, 10)
    assert torch.equal(back.log_prob(theta), prior.log_prob(theta))
    assert not torch.equal(back.log_prob(theta), Independent(td.Normal(TWO, 3.1 * TWO), 1).log_prob(theta))


def test_multivariate_normal_and_uniform_return_from_plain_data():
    for prior in (
        td.MultivariateNormal(TWO, covariance_matrix=torch.tensor([[2.0, 0.3], [0.3, 1.0]]).double()),
        UniformPrior([REAL, WHOLE]),
    ):
        back = restore(json.loads(json.dumps(describe(prior))))
        theta = draws(prior, 10)
        assert type(back) is type(prior)
        assert torch.allclose(back.log_prob(theta), prior.log_prob(theta), atol=1e-12)


def test_opaque_prior_is_named_and_never_rebuilt():
    plain = describe(mixture(1.0))
    assert plain["opaque"] and "MixtureSameFamily" in plain["type"]
    assert restore(plain) is None
    assert describe(mixture(1.0)) == plain, "the same density has the same description"
    assert describe(mixture(1.1)) != plain, "another density of the same class has another"


def test_description_leaves_the_global_state_alone():
    before = torch.get_rng_state()
    describe(mixture(1.0))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", ["Categorical", "os.system", "TransformedDistribution"])
def test_unknown_type_in_a_file_is_refused(kind):
    with pytest.raises(InputError, match="is not one of Uniform"):
        restore({"type": kind, "arguments": {}})


def test_class_that_only_borrows_a_name_is_opaque():
    class Normal(td.Normal):
        pass

    assert describe(Independent(Normal(TWO, TWO), 1))["base"]["opaque"]
    assert restore(describe(Independent(Normal(TWO, TWO), 1))) is None


@pytest.mark.parametrize(
    ("prior", "words"),
    [
        (td.Normal(TWO, TWO), ["prior", "batch shape (2,)", "Independent(prior, 1)"]),
        (UniformPrior([REAL]), ["prior", "(1,)", "expected event shape (2,)", "['m', 'k']"]),
        ("flat", ["prior", "Distribution", "str"]),
    ],
)
def test_prior_of_another_shape_is_refused(prior, words):
    with pytest.raises(InputError) as caught:
        check_prior(prior, [REAL, WHOLE])
    assert all(word in str(caught.value) for word in words)


def test_prior_of_the_right_shape_passes():
    check_prior(Independent(td.Normal(TWO, TWO), 1), [REAL, WHOLE])
