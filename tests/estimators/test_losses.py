"""Losses without training: at the exact f, the slope of the loss along any perturbation of f has mean zero."""

from dataclasses import replace
from functools import cache, partial

import pytest
import torch
from measures import z_of_mean
from torch import nn
from torch.nn.functional import softplus

from sbi_core import joint_log_ratio, joint_score, simulate
from sbi_core.estimators import Batch, alice, alices, carl, cascal, nre, nre_gold, rascal, rolr
from sbi_core.estimators.batches import prepare
from sbi_core.estimators.losses import columns_of
from sbi_core.seeding import seeded
from sbi_core.simulators import GaltonBoard, LinearGaussian

ROWS = 20_000
SMALL = GaltonBoard(n_rows=8, n_nails=11)
WORLDS = {"board": SMALL, "board with designs": SMALL, "gaussian": LinearGaussian(2)}


@cache
def rows_of(name):
    """Rows of a world, with their joint score."""
    world, design = WORLDS[name], None
    if name == "board with designs":
        with seeded(3):
            design = torch.stack([torch.randint(2, 9, (ROWS,)), torch.randint(4, 9, (ROWS,))], 1)
    rows = simulate(world, ROWS, seed=1, design=design, progress=False)
    return replace(rows, joint_score=joint_score(world, rows))


def with_contrasts(name, contrasts):
    """The rows, two stored contrasts of a kind to each, and their joint ratios."""
    world, rows = WORLDS[name], rows_of(name)
    with seeded(2):
        alt = contrasts(world.prior, rows.theta)
    ratios = [joint_log_ratio(world, rows, rows.theta, alt[:, k]) for k in range(alt.shape[1])]
    return replace(rows, theta_alt=alt, joint_log_ratio=torch.stack(ratios, 1))


def independent(prior, theta):
    return prior.sample((len(theta), 2))


def near(prior, theta):
    """From a kernel around a centre that was drawn around theta by the same kernel, which leaves the prior as it is."""
    noise = torch.randn(3, *theta.shape).double()
    if not hasattr(prior, "low"):
        centre = 0.8 * theta + 0.6 * noise[0]
        return torch.stack([0.8 * centre + 0.6 * noise[k] for k in (1, 2)], 1)
    centre = reflected(theta + 0.2 * noise[0])
    return torch.stack([reflected(centre + 0.2 * noise[k]) for k in (1, 2)], 1)


def reflected(theta):
    """Reflect at the ends of [-1, 0] until inside."""
    return 1 - (theta % 2 - 1).abs() - 1


def fixed(prior, theta):
    """A reference that nothing was simulated at."""
    return torch.full_like(theta, -0.4)[:, None].expand(-1, 2, -1)


def truncated(prior, theta):
    """Near theta, drawn again until inside the prior; where it has no edge, near without regard to its shape."""
    if not hasattr(prior, "low"):
        return theta[:, None] + torch.randn(len(theta), 2, theta.shape[1]).double()
    alt = theta[:, None] + 0.3 * torch.randn(len(theta), 2, 1).double()
    while (out := ~prior.support.check(alt)).any():
        alt = torch.where(out[..., None], theta[:, None] + 0.3 * torch.randn(alt.shape).double(), alt)
    return alt


class Observing:
    """A function f(theta, x, design) with the two names that losses know."""

    def observe(self, x, design=None):
        return lambda theta: self.log_likelihood(theta, x, design)


class Perturbed(Observing):
    """A multiple of the exact f, plus eps (B, 6) times six perturbations g(theta, x), row by row."""

    def __init__(self, world, eps, factor):
        self.world, self.eps, self.factor = world, eps, factor

    def log_likelihood(self, theta, x, design=None):
        u = (theta - self.world.prior.mean).sum(-1)
        v = (x / x.flatten(0, 1).std(0)).sum(-1)
        g = [u, u**2, u * v, torch.sin(3 * u + v), torch.tanh(v) * torch.cos(2 * u), torch.exp(-((u + 0.3 * v) ** 2))]
        exact = self.world.log_likelihood(theta, x, design)
        return self.factor * exact + (torch.stack(torch.broadcast_tensors(*g), -1) * self.eps[:, None]).sum(-1)


def batch_of(loss, rows, simulator=None, visits=1):
    """The batch that `fit` would make of all rows, at its first or a later visit of them."""
    source, _ = prepare(loss, rows, simulator, contrasts=2, check=False, seed=0)
    part = source.part(torch.arange(len(rows)))
    with seeded(4):
        return [part.batch() for _ in range(visits)][-1]


def significance(loss, name, batch, factor=1.0):
    """Largest mean of d loss / d eps over the perturbations, in standard errors measured over the rows."""
    slopes = []
    for index in torch.arange(len(batch)).split(5000):
        eps = torch.zeros(len(index), 6, dtype=torch.float64, requires_grad=True)
        value = loss(Perturbed(WORLDS[name], eps, factor), batch[index]) * len(index)
        slopes.append(torch.autograd.grad(value, eps)[0])
    return z_of_mean(torch.cat(slopes))


def log_ratio_as_label(estimator, batch):
    """alice, but with the log ratio where its sigmoid belongs."""
    together = torch.cat([batch.theta[:, None], batch.theta_alt], 1)
    value = estimator.log_likelihood(together, batch.x[:, None], batch.design)
    logits, label = value[:, :1] - value[:, 1:], batch.joint_log_ratio
    return (label * softplus(-logits) + (1 - label) * softplus(logits)).mean()


def own_in_the_numerator(estimator, batch):
    """rolr, but of p(x, z | theta) over p(x, z | theta')."""
    value = estimator.log_likelihood(torch.cat([batch.theta[:, None], batch.theta_alt], 1), batch.x[:, None])
    ratio = value[:, :1] - value[:, 1:]
    scale = softplus(ratio).detach()
    return ((torch.exp(ratio - scale) - torch.exp(batch.joint_log_ratio.clamp(max=30) - scale)) ** 2).mean()


GOLD_FAULTS = {
    "ratio of the wrong sign": lambda batch: replace(batch, joint_log_ratio=-batch.joint_log_ratio),
    "ratio shuffled": lambda batch: replace(batch, joint_log_ratio=batch.joint_log_ratio.roll(1, 0)),
    "score times 0.9": lambda batch: replace(batch, joint_score=0.9 * batch.joint_score),
    "score at theta + 0.1": lambda batch: replace(batch, joint_score=batch.joint_score - 0.1 / 4),
}
"""What can be wrong with gold; the joint score of the Gaussian world is (z - theta) / 4."""

CONTRAST_FAULTS = {"fixed": fixed, "truncated": truncated, "independent": independent}

EXCHANGE = ("fixed", "truncated")
RATIO = ("ratio of the wrong sign", "ratio shuffled")
SCORE = ("score times 0.9", "score at theta + 0.1")


def faults(loss, names, **options):
    return [(partial(loss, **options) if options else loss, name) for name in names]


LOSSES = {
    carl: faults(carl, EXCHANGE),
    nre: faults(nre, EXCHANGE),
    alice: [*faults(alice, EXCHANGE + RATIO), (log_ratio_as_label, "independent")],
    nre_gold: faults(nre_gold, EXCHANGE + RATIO),
    partial(nre_gold, alpha=0.3): faults(nre_gold, SCORE, alpha=1.0),
    rolr: [*faults(rolr, RATIO), (own_in_the_numerator, "independent")],
    cascal: [*faults(cascal, EXCHANGE, alpha=0.01), *faults(cascal, SCORE, alpha=1.0)],
    rascal: faults(rascal, RATIO + SCORE, alpha=1.0),
    alices: [*faults(alices, EXCHANGE, alpha=0.01), *faults(alices, RATIO + SCORE, alpha=1.0)],
}
"""A row for each loss: itself, and what must be seen to bias it."""


def label(value):
    return getattr(getattr(value, "func", value), "__name__", None)


@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.parametrize("loss", LOSSES, ids=label)
def test_the_exact_f_is_stationary_in_the_batches_of_fit(loss, name):
    batch = batch_of(loss, replace(rows_of(name), joint_score=None), WORLDS[name], visits=3)
    assert significance(loss, name, batch) < 4
    assert significance(loss, name, batch, factor=-1.0) > 4, "saboteur: f of the wrong sign"


@pytest.mark.parametrize("name", ["board", "gaussian"])
@pytest.mark.parametrize("contrasts", [independent, near], ids=label)
@pytest.mark.parametrize("loss", LOSSES, ids=label)
def test_the_exact_f_is_stationary_with_stored_contrasts_that_are_exchangeable(loss, contrasts, name):
    assert significance(loss, name, batch_of(loss, with_contrasts(name, contrasts))) < 4


@pytest.mark.parametrize(("loss", "fault"), [pair for pairs in LOSSES.values() for pair in pairs], ids=label)
def test_what_biases_a_loss_is_seen(loss, fault):
    contrasts = CONTRAST_FAULTS.get(fault, independent)
    read = alice if loss in (log_ratio_as_label, own_in_the_numerator) else loss
    batch = batch_of(read, with_contrasts("gaussian", contrasts))
    assert significance(loss, "gaussian", GOLD_FAULTS.get(fault, lambda same: same)(batch)) > 4


@pytest.mark.parametrize("contrasts", [fixed, truncated], ids=label)
@pytest.mark.parametrize("loss", [rolr, partial(rascal, alpha=0.01)], ids=label)
def test_a_regression_on_the_ratio_needs_no_exchangeable_contrasts(loss, contrasts):
    """The same contrasts bias the classifiers, above."""
    for name in ("board", "gaussian"):
        assert significance(loss, name, batch_of(loss, with_contrasts(name, contrasts))) < 4


def test_contrasts_cut_at_the_edge_of_the_prior_bias_carl_on_the_board():
    assert significance(carl, "board", batch_of(carl, with_contrasts("board", truncated))) > 4


class Line(Observing, nn.Module):
    """f = slope theta_1 + 0 theta, with a weight."""

    def __init__(self, slope):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(float(slope), dtype=torch.float64))

    def log_likelihood(self, theta, x, design=None):
        return self.slope * theta[..., 0] + 0.0 * x[..., 0]


def small_batch(ratio=0.0):
    theta = torch.tensor([[1.0], [-1.0]]).double()
    ones = torch.ones(2, 1).double()
    return Batch(theta, ones, None, -theta[:, None], ratio * ones, 2 * ones, ones[:, 0], torch.eye(1).double())


@pytest.mark.parametrize("slope", [-5e3, 0.0, 5e3])
@pytest.mark.parametrize("ratio", [-torch.inf, -1e4, 0.0, 1e4, torch.inf])
@pytest.mark.parametrize("loss", LOSSES, ids=label)
def test_extreme_ratios_and_logits_overflow_nowhere(loss, ratio, slope):
    line = Line(slope)  # logits of +-1e4
    value = loss(line, small_batch(ratio))
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(line.slope.grad)


def test_a_loss_that_takes_logarithms_of_probabilities_would_overflow():
    logits = small_batch().theta * 1e4
    assert not torch.isfinite(-torch.log(torch.sigmoid(logits))).all(), "saboteur: what the losses must not do"


def test_values_are_those_of_the_papers():
    line, batch = Line(0.7), small_batch(ratio=0.3)
    logit = 2 * 0.7 * batch.theta[:, 0]
    label, chance = torch.sigmoid(torch.tensor(0.3)).double(), torch.sigmoid(logit)
    entropy = -(label * chance.log() + (1 - label) * (1 - chance).log()).mean()
    assert torch.allclose(carl(line, batch), -chance.log().mean(), rtol=1e-12)
    assert torch.allclose(alice(line, batch), entropy, rtol=1e-7)
    assert torch.allclose(alices(line, batch, alpha=1.0), entropy + (0.7 - 2) ** 2, rtol=1e-7)
    assert torch.allclose(cascal(line, batch, alpha=0.5), -chance.log().mean() + 0.5 * (0.7 - 2) ** 2, rtol=1e-7)
    squared = (((-logit).exp() - torch.tensor(-0.3).exp()) / (1 + (-logit).exp())) ** 2
    assert torch.allclose(rolr(line, batch), squared.mean(), rtol=1e-7)
    assert torch.allclose(rascal(line, batch, alpha=0.5), squared.mean() + 0.5 * (0.7 - 2) ** 2, rtol=1e-7)


def test_softmax_over_one_contrast_is_the_pairwise_loss():
    batch = batch_of(alice, with_contrasts("gaussian", independent))[:500]
    one = replace(batch, theta_alt=batch.theta_alt[:, :1], joint_log_ratio=batch.joint_log_ratio[:, :1])
    world = WORLDS["gaussian"]
    assert torch.allclose(nre(world, one), carl(world, one), rtol=1e-9)
    assert torch.allclose(nre_gold(world, one), alice(world, one), rtol=1e-9)
    assert not torch.allclose(nre(world, batch), carl(world, batch), rtol=0.1), "saboteur: with two it is not"


def test_alpha_weighs_the_score_term():
    line, batch = Line(0.7), small_batch(ratio=0.3)
    for loss, bare in ((alices, alice), (nre_gold, nre_gold)):
        values = [loss(line, batch, alpha=alpha) for alpha in (0.0, 0.25, 1.0)]
        assert torch.equal(values[0], bare(line, batch))
        assert torch.allclose(values[1] - values[0], (values[2] - values[0]) / 4, rtol=1e-12)
        assert torch.allclose(values[2] - values[0], torch.tensor((0.7 - 2) ** 2).double(), rtol=1e-7)
    assert torch.equal(partial(alices, alpha=0.25)(line, batch), alices(line, batch, alpha=0.25))
    with pytest.raises(TypeError):
        alices(line, batch, 0.25)


def test_a_loss_says_what_its_weight_makes_it_read():
    assert columns_of(nre_gold) == columns_of(partial(nre_gold, alpha=0.0)) == ("theta_alt", "joint_log_ratio")
    assert columns_of(partial(nre_gold, alpha=0.1)) == columns_of(alices) == columns_of(partial(alices, alpha=0.1))
    assert "joint_score" in columns_of(alices)


def test_alpha_has_no_unit():
    """theta in other units leaves the loss what it is."""
    rows = with_contrasts("gaussian", independent)
    batch = batch_of(alices, rows)[:500]
    unit = torch.tensor([1e3, 1e-6]).double()

    class Rescaled(Observing):
        def log_likelihood(self, theta, x, design=None):
            return WORLDS["gaussian"].log_likelihood(theta / unit, x)

    other = replace(
        batch,
        theta=batch.theta * unit,
        theta_alt=batch.theta_alt * unit,
        joint_score=batch.joint_score / unit,
        whitening=batch.whitening * unit,
    )
    same = alices(WORLDS["gaussian"], batch)
    assert torch.allclose(alices(Rescaled(), other), same, rtol=1e-9)
    wrong = replace(other, whitening=batch.whitening)
    assert not torch.allclose(alices(Rescaled(), wrong), same, rtol=0.1), "saboteur: the scale in the old units"


def test_rows_and_device_of_a_batch():
    batch = batch_of(alices, with_contrasts("gaussian", independent))
    part = batch[torch.tensor([3, 1])].to("cpu")
    assert len(part) == 2 and torch.equal(part.theta_alt[0], batch.theta_alt[3]) and part.design is None
    assert torch.equal(part.whitening, batch.whitening), "one matrix, not one a row"
