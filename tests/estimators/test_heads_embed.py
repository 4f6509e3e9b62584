"""One place where every head reads x: with an embedding, without one, from disk, in an ensemble, by configuration."""

import json
from functools import partial

import pytest
import torch
from embedding_toys import Careless
from picture_toys import Spot, rows
from runs import BOX, WORLD, bits, quick
from runs import rows as gaussian
from torch import nn

from sbi_core import InputError, Parameter, StoreError, infer
from sbi_core.conf.registry import build
from sbi_core.estimators import (
    Ensemble,
    LikelihoodEstimator,
    PosteriorEstimator,
    RatioEstimator,
    alice,
    carl,
    fit,
    load_estimator,
    npe,
)
from sbi_core.estimators.embeddings import as_embedding, embedding
from sbi_core.estimators.networks import mlp
from sbi_core.estimators.networks import reset as redraw
from sbi_core.seeding import seeded

SPOT = Spot()
SMALL = {"name": "cnn", "width": 2, "features": 3}
ANGLE = Parameter("angle", 0, 90)


class Own(nn.Module):
    """A user's module, with another nonlinearity on demand."""

    def __init__(self, width=3, bend=torch.tanh):
        super().__init__()
        self.layers, self.bend = nn.Sequential(nn.Conv2d(1, 2, 4, stride=4), nn.Flatten(), nn.Linear(32, width)), bend

    def forward(self, x):
        return self.bend(self.layers(x[:, None]))


def learned(choice=SMALL, seed=1, head=RatioEstimator, loss=alice, **options):
    data = rows(SPOT, 100)
    start = head.from_data(data, embedding=choice, **options)
    return fit(start, loss, data, simulator=SPOT, seed=seed, max_epochs=1, gold_check=False, progress=False).estimator


flow = partial(learned, head=PosteriorEstimator, loss=npe, transforms=1, flow_hidden=8)
by_head = pytest.mark.parametrize("make", [partial(learned, hidden=(8,)), flow], ids=["ratio", "posterior"])


def call(estimator, theta, x, **options):
    with torch.no_grad():
        return estimator.log_likelihood(theta, x, **options)


# What it is


def test_without_an_embedding_nothing_changes():
    data = gaussian(50)
    head = RatioEstimator.from_data(data, hidden=(8,))
    assert set(head.state_dict()) == {
        "trained",
        *(f"{name}_scaler.{part}" for name in ("theta", "design", "x") for part in ("shift", "scale")),
        *(f"network.{layer}.{part}" for layer in (0, 2) for part in ("weight", "bias")),
        *(f"regression.{part}" for part in ("slope", "shift", "root")),
    }
    assert "embedding" not in head.describe() and "counted" not in head.describe()
    plain = mlp(6, (8,), 1)
    for network, draw in ((head.network, head.reset), (plain, partial(redraw, plain))):
        with seeded(3):
            draw()
        assert bits(network[0]) == bits(head.network[0])
    assert not any(part.any() for part in head.network[-1].parameters()), "the last layer starts at zero"
    plain[-1].load_state_dict({name: part + 0.3 for name, part in head.network[-1].state_dict().items()})
    head.network[-1].load_state_dict(plain[-1].state_dict())
    head.adapt(data)
    x, theta = head.x_scaler(data.x), head.theta_scaler(data.theta)
    off = head.regression.look(x)(theta)
    by_hand = plain(torch.cat([x, theta, off], 1))[:, 0] - 0.5 * off.square().sum(1)
    assert torch.equal(head.log_likelihood(data.theta, data.x), by_hand)
    assert not torch.equal(head.log_likelihood(data.theta, data.x), by_hand.roll(1)), "saboteur"


@by_head
def test_theta_joins_what_the_network_made_of_x(make):
    estimator, data = make(), rows(SPOT, 20)
    if isinstance(estimator, RatioEstimator):
        estimator.network[-1].reset_parameters()
        with torch.no_grad():
            seen = estimator.embedding(estimator.x_scaler(data.x))
            by_hand = estimator.network(torch.cat([seen, estimator.theta_scaler(data.theta)], 1))[:, 0]
        assert torch.equal(call(estimator, data.theta, data.x), by_hand)
    grid = call(estimator, data.theta[:, None], data.x)
    assert grid.shape == (20, 20)
    assert torch.allclose(grid.diagonal(), call(estimator, data.theta, data.x), atol=1e-4)
    assert not torch.allclose(grid.diagonal(), call(estimator, data.theta, data.x.roll(1, 0)), atol=1e-4), "saboteur"


@by_head
@pytest.mark.parametrize("leading", [(), (5,), (2, 3), (2, 1, 3), (0,)])
def test_leading_axes_of_x_return(make, leading):
    estimator, x = make(), rows(SPOT, 12).x
    x = x[: torch.Size(leading).numel()].reshape(*leading, 16, 16)
    got = call(estimator, torch.tensor([7.0]).double(), x)
    each = [call(estimator, torch.tensor([7.0]).double(), one) for one in x.reshape(-1, 16, 16)]
    assert got.shape == leading and torch.allclose(
        got.flatten().double(), torch.tensor(each).reshape(-1).double(), atol=1e-4
    )
    if isinstance(estimator, PosteriorEstimator):
        assert estimator.sample(x, 4).shape == (*leading, 4, 1)


def test_designs_join_after_the_embedding():
    head = RatioEstimator([BOX[0]], (16, 16), designs=[ANGLE], embedding=SMALL)
    x, angles = rows(SPOT, 3).x, torch.tensor([[0.0], [45.0], [90.0]]).double()
    assert len(call(head, torch.zeros(1), x[0], design=angles).unique()) == 3
    assert head.network[0].in_features == 3 + 1 + 1


@by_head
def test_the_network_looks_once(make):
    """A grid over theta must not run it again; whether x is like those of the training is another look."""
    estimator, looks = make(), []
    estimator.embedding.network.register_forward_hook(lambda module, given, made: looks.append(len(made)))
    infer(estimator, SPOT.prior, rows(SPOT, 1).x[0])
    assert looks == [1, 1]
    infer(estimator, SPOT.prior, rows(SPOT, 7).x, iid=True)
    assert looks == [1, 1, 7, 7]
    call(estimator, torch.tensor([7.0]), rows(SPOT, 2).x)
    assert looks == [1, 1, 7, 7, 2], "saboteur: log_likelihood looks each time"


def test_losses_look_once():
    data, looks = rows(SPOT, 100), []

    class Watched(Own):
        def forward(self, x):
            looks.append(len(x))
            return super().forward(x)

    head = RatioEstimator.from_data(data, embedding=Watched())

    def twice(estimator, batch):
        theta = torch.cat([batch.theta[:, None], batch.theta_alt], 1)
        return torch.stack([estimator.log_likelihood(theta[:, k], batch.x) for k in (0, 1)]).diff(dim=0).mean()

    for loss, times in ((alice, 1), (twice, 2)):
        looks.clear()
        fit(head, loss, data, simulator=SPOT, seed=1, max_epochs=1, batch_size=90, gold_check=False, progress=False)
        assert looks.count(90) == times


def test_symmetry_is_an_option():
    x = rows(SPOT, 5).x
    for symmetry, same in (("flips", True), ("none", False)):
        estimator = learned({**SMALL, "symmetry": symmetry})
        nn.init.normal_(estimator.network[-1].weight)  # which starts at zero
        values = [call(estimator, torch.tensor([7.0]).double(), copy) for copy in (x, x.flip(-2))]
        assert torch.allclose(*values, atol=1e-5) == same


# A module of one's own


def test_own_module_is_copied_and_trained_from_new_weights():
    module = Own()
    before = bits(module)
    one, two = learned(module), learned(Own())
    assert bits(module) == before and module.training
    assert bits(one) == bits(two) != bits(learned(module, seed=2)), "the seed says all"
    frozen = Own().requires_grad_(False)
    kept = bits(learned(frozen).embedding.network)
    assert kept == bits(frozen) != bits(learned(Own()).embedding.network)


def test_lazy_layers_find_their_width_whatever_the_random_state():
    lazy = nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
    heads = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        heads.append(RatioEstimator([BOX[0]], (4, 4), embedding=lazy))
    assert bits(heads[0]) == bits(heads[1]) and lazy[1].has_uninitialized_params()


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ("cn", "did you mean 'cnn'"),
        ("sets", r"expected \(n_max, F\)|n_max"),
        ({"nam": "cnn"}, "expected a name in it"),
        ({"name": "cnn", "widht": 3}, "no option 'widht'.*width"),
        (Own, "embedding is type, expected an nn.Module or a name"),
        (3, "embedding is int"),
        (nn.Linear(3, 2), "Linear fails on x of zeros"),
    ],
)
def test_what_is_no_embedding(choice, words):
    shape = (16, 16, 16, 16) if choice == "sets" else (16, 16)
    with pytest.raises(InputError, match=words):
        RatioEstimator([BOX[0]], shape, embedding=choice)


def test_heads_that_read_no_embedding():
    with pytest.raises(InputError, match=r"takes no embedding \('cnn'\).*ratio or posterior.*summary"):
        LikelihoodEstimator.from_data(rows(SPOT, 20), embedding="cnn")
    with pytest.raises(InputError, match="x is a class label"):
        RatioEstimator([BOX[0]], (1,), categories=5, embedding="mlp")


# On disk


@by_head
@pytest.mark.parametrize(
    "choice", ["cnn", {**SMALL, "symmetry": "dihedral"}, Own(), embedding("mlp", (16, 16), hidden=[4])]
)
def test_it_returns_from_its_folder(tmp_path, make, choice):
    estimator, data = make(choice), rows(SPOT, 5)
    own = {"embedding": Own()} if isinstance(choice, Own) else {}
    back = load_estimator(estimator.save(tmp_path), **own)
    assert bits(back) == bits(estimator) and back.describe() == estimator.describe() and not back.training
    assert torch.equal(call(back, data.theta, data.x), call(estimator, data.theta, data.x))


def test_own_module_with_a_symmetry_and_scales_returns(tmp_path):
    estimator = learned(as_embedding(Own(), (16, 16), symmetry="flips", pooled=(1,)))
    assert estimator.x_scaler.shift.shape == (16, 1)
    back, x = load_estimator(estimator.save(tmp_path), embedding=Own()), rows(SPOT, 5).x
    values = [call(back, torch.tensor([7.0]), copy) for copy in (x, x.flip(-1))]
    assert torch.equal(call(estimator, torch.tensor([7.0]), x), values[0]) and torch.allclose(*values, atol=1e-5)


def test_own_module_that_is_missing_wrong_or_superfluous(tmp_path):
    own, named = learned(Own()).save(tmp_path / "own"), learned().save(tmp_path / "named")
    with pytest.raises(
        InputError, match=r"module of your own, Own, .*load_estimator\(folder, embedding=Own\(\.\.\.\)\)"
    ):
        load_estimator(own)
    with pytest.raises(InputError, match=r"embedding Own does not fit the weights in .*size mismatch"):
        load_estimator(own, embedding=Own(width=4))
    with pytest.raises(InputError, match=r"embedding Sequential does not fit the weights"):
        load_estimator(own, embedding=nn.Sequential(nn.Flatten(), nn.Linear(256, 3)))
    with pytest.raises(InputError, match="Linear fails on x of zeros"):
        load_estimator(own, embedding=nn.Linear(3, 2))
    with pytest.raises(InputError, match=r"embedding Own has the weights .* computes otherwise"):
        load_estimator(own, embedding=Own(bend=torch.sin))
    with pytest.raises(InputError, match=r"embedding Own is given, .* without a module of your own"):
        load_estimator(named, embedding=Own())
    text = (own / "model.json").read_text()
    assert json.loads(text)["estimator"]["embedding"] == {"own": "Own", "symmetry": "none", "pooled": [0, 1]}
    (own / "model.json").write_text(text.replace('"Own"', '"Other"'))
    with pytest.raises(StoreError):
        load_estimator(own, embedding=Own())


def test_an_ensemble_of_own_modules(tmp_path):
    module = Own()
    both = Ensemble([learned(module, seed=seed) for seed in (1, 2)])
    first, second = (bits(member.embedding) for member in both.members)
    assert first != second
    back, data = load_estimator(both.save(tmp_path), embedding=Own()), rows(SPOT, 5)
    assert bits(back) == bits(both)
    assert torch.equal(call(back, data.theta, data.x), call(both, data.theta, data.x))
    with pytest.raises(InputError, match="module of your own, Own"):
        load_estimator(tmp_path)


# By configuration


@pytest.mark.parametrize("name", ["ratio", "posterior"])
@pytest.mark.parametrize("choice", ["cnn", {"name": "cnn", "symmetry": "flips"}, None])
def test_configuration_chooses(name, choice):
    from hydra import compose, initialize_config_module
    from omegaconf import OmegaConf

    said = json.dumps(choice).replace('"', "") if choice else "null"
    with initialize_config_module("sbi_core.conf", version_base="1.3"):
        config = compose("config", [f"estimator={name}", f"estimator.embedding={said}"])
    estimator = build(OmegaConf.to_container(config)["estimator"], "estimator")(rows(SPOT, 20))
    made = estimator.embedding
    assert (made is None) == (choice is None)
    if choice:
        assert made.described["name"] == "cnn" and made.symmetry == ("flips" if choice != "cnn" else "none")


def test_quick_trainings_of_flat_rows_take_one_too():
    run = quick(gaussian(), carl, hidden=(8,), simulator=None)
    assert run.estimator.embedding is None
    head = RatioEstimator.from_data(gaussian(), embedding={"name": "residual", "hidden": [4], "features": 2})
    assert fit(head, carl, gaussian(), seed=1, max_epochs=1, progress=False).estimator.features == 2
    assert WORLD.x_shape is None or head.x_shape == (2,)


def test_own_module_reads_n_events_only_where_events_are_counted():
    head = RatioEstimator([BOX[0]], (5, 3), embedding=Careless())
    assert head.embedding.takes_n_events and not head.needs_n_events
    assert call(head, torch.zeros(1), torch.randn(4, 5, 3)).shape == (4,)
