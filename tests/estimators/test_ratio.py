import pytest
import torch
from torch.nn.functional import one_hot

from sbi_core import InputError, Parameter, SbiWarning, Simulations, simulate
from sbi_core.estimators import RatioEstimator
from sbi_core.seeding import seeded
from sbi_core.simulators import GaltonBoard, LinearGaussian

AXES = (Parameter("mass", 0, 2e3), Parameter("width", 0, 1e-3))
ANGLE = Parameter("angle", 0, 90)


def scaled(head, designs=0):
    """The head with new weights, scaled to rows whose columns differ by many orders of magnitude."""
    with seeded(1):
        theta = torch.rand(200, 2).double() * torch.tensor([2e3, 1e-3])
        x = 1e9 + torch.randn(200, *head.x_shape).double()
        design = 90 * torch.rand(200, designs).double() if designs else None
        rows = Simulations.from_arrays(theta, x, parameters=AXES, designs=[ANGLE] * designs, design=design)
        head.reset()
        head.adapt(rows)
    return head.eval(), rows


def call(head, theta, x, design=None):
    with torch.no_grad():
        return head.log_likelihood(theta, x, design)


@pytest.mark.parametrize("event", [(1,), (3,), (4, 2)])
@pytest.mark.parametrize(
    ("leading_theta", "leading_x", "together"),
    [
        ((), (), ()),
        ((5,), (5,), (5,)),
        ((5,), (), (5,)),
        ((), (5,), (5,)),
        ((7, 1), (5,), (7, 5)),
        ((2, 1, 5), (3, 1), (2, 3, 5)),
        ((0,), (0,), (0,)),
    ],
)
def test_theta_and_x_broadcast(event, leading_theta, leading_x, together):
    head, _ = scaled(RatioEstimator(AXES, event))
    with seeded(2):
        theta = torch.rand(*leading_theta, 2).double() * torch.tensor([2e3, 1e-3])
        x = 1e9 + torch.randn(*leading_x, *event).double()
    got = call(head, theta, x)
    assert got.shape == together
    rows_theta = theta.expand(*together, 2).reshape(-1, 2)
    rows_x = x.expand(*together, *event).reshape(-1, *event)
    one_by_one = [call(head, rows_theta[k], rows_x[k]) for k in range(got.numel())]
    assert torch.allclose(got.flatten(), torch.tensor(one_by_one).reshape(-1), rtol=1e-5, atol=1e-6)
    if got.numel() > 1:
        assert len({float(value) for value in one_by_one}) == len(one_by_one), "every pair has a value of its own"


def test_observe_is_log_likelihood_with_x_seen_once(monkeypatch):
    head, rows = scaled(RatioEstimator(AXES, (3,)))
    looks = []
    scale = head.x_scaler.forward
    monkeypatch.setattr(head.x_scaler, "forward", lambda values: looks.append(len(values)) or scale(values))
    look = head.observe(rows.x)
    for theta in (rows.theta, rows.theta.roll(1, 0), rows.theta[:1]):
        with torch.no_grad():
            seen = look(theta)
        assert torch.equal(seen, call(head, theta, rows.x))
    assert len(looks) == 1 + 3, "once for observe, once for each call of log_likelihood"


def test_a_class_label_enters_one_hot():
    board = GaltonBoard()
    data = simulate(board, 100, seed=1, progress=False)
    head = RatioEstimator.from_data(data)
    first = head.network[0]
    assert head.categories == 32 and first.in_features == 32 + 1
    labels = torch.arange(32)[:, None]
    with torch.no_grad():
        by_hand = head.network(torch.cat([one_hot(labels[:, 0], 32).float(), head.theta_scaler(torch.zeros(32, 1))], 1))
    for kind in (torch.float32, torch.float64, torch.int64):
        assert torch.equal(call(head, torch.zeros(1, 1), labels.to(kind)), by_hand[:, 0])
    with torch.no_grad():
        first.weight[:, 7] += 1.0
    changed = call(head, torch.zeros(1, 1), labels) != by_hand[:, 0]
    assert changed.nonzero().flatten().tolist() == [7], "one weight a label"


def test_ratios_are_antisymmetric_and_transitive():
    head, rows = scaled(RatioEstimator(AXES, (3,)))
    with torch.no_grad():
        f = [head.log_likelihood(rows.theta.roll(k, 0), rows.x) for k in range(3)]

    def ratio(one, other):
        return f[one] - f[other]

    assert torch.equal(ratio(0, 1), -ratio(1, 0))
    assert (ratio(0, 0) == 0).all()
    rounding = 4 * torch.finfo(torch.float32).eps * torch.stack(f).abs().max(0).values
    gap = (ratio(0, 1) + ratio(1, 2) - ratio(0, 2)).abs()
    assert (gap <= rounding).all() and ratio(0, 1).abs().min() > 0
    assert not ((ratio(0, 1) + ratio(2, 1) - ratio(0, 2)).abs() <= rounding).all(), "saboteur: one ratio turned round"


def test_theta_is_in_the_simulators_units():
    """One and the same head, whatever the units of the data it is scaled to."""
    unit = torch.tensor([1e3, 1e-9]).double()
    data = simulate(LinearGaussian(2), 300, seed=1, progress=False)
    other = Simulations.from_arrays(data.theta * unit, data.x * 1e6 - 5e6, parameters=AXES)
    values = []
    for rows in (data, other):
        head = RatioEstimator.from_data(rows)
        with seeded(1):
            head.reset()
        head.adapt(rows)
        values.append(call(head, rows.theta, rows.x))
        theta = rows.theta.clone().requires_grad_()
        values.append(torch.autograd.grad(head.log_likelihood(theta, rows.x).sum(), theta)[0])
    assert torch.allclose(values[0], values[2], atol=1e-5)
    assert torch.allclose(values[1], values[3] * unit, rtol=1e-3, atol=1e-4), "the slope is per unit of theta"
    assert not torch.allclose(values[1], values[3], rtol=1e-3, atol=1e-4), "saboteur: the other unit"


def test_designs_are_inputs():
    head, rows = scaled(RatioEstimator(AXES, (3,), designs=[ANGLE]), designs=1)
    angles = torch.tensor([[0.0], [30.0], [90.0]]).double()
    got = call(head, rows.theta[0], rows.x[0], angles)
    assert got.shape == (3,) and len(got.unique()) == 3
    grid = head.observe(rows.x[:4], rows.design[:4])(rows.theta[:5, None])
    assert grid.shape == (5, 4)
    assert torch.allclose(grid[2], call(head, rows.theta[2], rows.x[:4], rows.design[:4]), atol=1e-6)


def test_from_data_takes_shapes_and_options():
    _, rows = scaled(RatioEstimator(AXES, (4, 2), designs=[ANGLE]), designs=1)
    head = RatioEstimator.from_data(rows, hidden=(5,))
    assert (head.axes, head.designs, head.x_shape, head.categories) == (AXES, (ANGLE,), (4, 2), None)
    assert [layer.out_features for layer in head.network[::2]] == [5, 1]
    board = simulate(GaltonBoard(), 20, seed=1, progress=False)
    assert RatioEstimator.from_data(board).designs == (), "designs that were left at their default are no inputs"
    with pytest.raises(TypeError, match="hiden"):
        RatioEstimator.from_data(rows, hiden=(5,))


@pytest.mark.parametrize(
    ("theta", "x", "design", "words"),
    [
        (torch.zeros(5, 3), torch.zeros(5, 4), None, ["theta", "(5, 3)", "(*, 2)", "mass", "width"]),
        (torch.zeros(()), torch.zeros(5, 4), None, ["theta", "()", "(*, 2)"]),
        (torch.zeros(5, 2), torch.zeros(5, 3), None, ["x", "(5, 3)", "(*, 4)"]),
        (torch.zeros(5, 2), torch.zeros(()), None, ["x", "()", "(*, 4)"]),
        (torch.zeros(5, 2), torch.zeros(5, 4), torch.zeros(5, 1), ["RatioEstimator", "without designs", "given"]),
    ],
)
def test_errors_name_what_is_wrong(theta, x, design, words):
    with pytest.raises(InputError) as caught:
        RatioEstimator(AXES, (4,)).log_likelihood(theta, x, design)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize("design", [None, torch.zeros(5, 2)])
def test_errors_name_the_designs(design):
    head = RatioEstimator(AXES, (4,), designs=[ANGLE])
    with pytest.raises(InputError, match=r"design.*'angle'"):
        head.log_likelihood(torch.zeros(5, 2), torch.zeros(5, 4), design)


@pytest.mark.parametrize("label", [-1.0, 32.0, 3.5, torch.nan])
def test_what_is_no_label_is_refused(label):
    head = RatioEstimator([AXES[0]], (1,), categories=32)
    with pytest.raises(InputError, match="x holds values that are no label from 0 to 31"):
        head.log_likelihood(torch.zeros(1), torch.tensor([label]))


def test_initial_weights_do_not_depend_on_the_callers_random_state():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = RatioEstimator(AXES, (4,))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    two = RatioEstimator(AXES, (4,))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    with seeded(1):
        two.reset()
    assert not any(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


# The evidence


class Exact(RatioEstimator):
    """The exact log likelihood of a world, plus a term without theta."""

    def __init__(self, world):
        super().__init__(world.parameters, world.x_shape)
        self.world = world

    def observe(self, x, design=None):
        return lambda theta: self.world.log_likelihood(theta, x) + x.sum(-1)


def test_the_evidence_makes_a_ratio_of_f():
    """theta ~ N(0, 1), x ~ N(theta, 5), hence x ~ N(0, 6): log p(x) within four standard errors of the average."""
    world = LinearGaussian(1)
    x = torch.tensor([[-3.0], [0.0], [1.0], [4.0]]).double()

    def exact(variance):
        return torch.distributions.Normal(0.0, variance**0.5).log_prob(x[:, 0]) + x.sum(-1)

    found = Exact(world).log_evidence(x, prior=world.prior, n=40_000)
    assert found.shape == (4,) and found.dtype == torch.float64
    assert float((found - exact(6.0)).abs().max()) < 4 * 1.5 / 40_000**0.5
    assert not float((found - exact(5.0)).abs().max()) < 4 * 1.5 / 40_000**0.5, "saboteur: without the prior's width"
    assert torch.equal(found, Exact(world).log_evidence(x, prior=world.prior, n=40_000)), "seeded"
    assert torch.allclose(Exact(world).log_evidence(x[None], prior=world.prior, n=40_000), found[None])


def test_the_evidence_by_default_is_over_the_ranges():
    head = Exact(LinearGaussian(1))
    low, high = head.axes[0].low, head.axes[0].high
    x = torch.zeros(1).double()
    edges = torch.distributions.Normal(0.0, 5**0.5).cdf(torch.tensor([low, high]).double())
    expected = ((edges[1] - edges[0]) / (high - low)).log()
    assert float((head.log_evidence(x) - expected).abs()) < 4 / 100


def test_an_evidence_from_few_draws_is_said():
    head = Exact(LinearGaussian(1))
    with pytest.warns(SbiWarning, match="of n = 150 draws of the prior only"):
        head.log_evidence(torch.tensor([8.0]).double(), n=150)
