"""Embeddings of every kind: shapes, invariances, derivatives, and what they can learn."""

import pytest
import torch
from embedding_toys import Careless, invariant

from sbi_core.errors import InputError
from sbi_core.estimators.embeddings import EMBEDDINGS, as_embedding, embedding
from sbi_core.estimators.networks import reset

SMALL = {
    "mlp": ((3, 4), {"hidden": [8]}),
    "residual": ((5,), {"hidden": [8]}),
    "cnn": ((2, 9, 9), {"width": 4}),
    "resnet": ((9, 9), {"width": 4}),
    "sets": ((5, 3), {"width": 8}),
    "attention": ((5, 3), {"width": 8, "heads": 2, "queries": 3}),
    "series": ((20, 2), {"width": 4}),
}
by_name = pytest.mark.parametrize("name", list(EMBEDDINGS))
by_set = pytest.mark.parametrize("name", ["sets", "attention"])


def small(name, seed=0, **options):
    """A small embedding of a kind, in double precision, six rows for it, and their numbers of events."""
    torch.manual_seed(seed)
    shape, sizes = SMALL[name]
    network = embedding(name, shape, features=6, **sizes, **options).double()
    n_events = torch.tensor([5, 3, 0, 1, 2, 4]) if network.takes_n_events else None
    return network, torch.randn(6, *shape).double(), n_events


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        *[("mlp", (7,)), ("mlp", (2, 3, 4)), ("residual", (2, 3)), ("cnn", (32, 32)), ("cnn", (3, 20, 12))],
        *[("cnn", (2, 2)), ("resnet", (32, 32)), ("resnet", (3, 5, 7)), ("sets", (4, 2)), ("sets", (1, 1))],
        *[("attention", (4, 2)), ("series", (50,)), ("series", (7, 3)), ("series", (1,))],
    ],
)
def test_shapes(name, shape) -> None:
    network = embedding(name, shape)
    assert network.features == 32 and network.takes_n_events == (name in ("sets", "attention"))
    for rows in (0, 1, 3):
        seen = network(torch.randn(rows, *shape))
        assert seen.shape == (rows, 32) and seen.dtype == torch.float32
    assert embedding(name, shape, features=5)(torch.randn(2, *shape)).shape == (2, 5)


@by_name
def test_every_row_stands_alone(name) -> None:
    network, x, n_events = small(name)
    together = network(x, n_events)
    alone = [network(x[k : k + 1], None if n_events is None else n_events[k : k + 1]) for k in range(6)]
    torch.testing.assert_close(together, torch.cat(alone))
    assert torch.equal(network.eval()(x, n_events), together) and network.train().training
    assert len(together.unique(dim=0)) == 6


@by_name
def test_same_seed_same_weights_and_a_round_trip(name) -> None:
    network, x, n_events = small(name)
    again, other = small(name)[0], small(name, seed=1)[0]
    seen = network(x, n_events)
    assert torch.equal(again(x, n_events), seen) and not torch.allclose(other(x, n_events), seen)
    other.load_state_dict(network.state_dict())
    assert torch.equal(other(x, n_events), seen)


@by_name
def test_reset_redraws_everything(name) -> None:
    network = small(name)[0]
    for p in network.parameters():
        p.data.fill_(7.0)
    reset(network)
    assert all(bool((p.isfinite() & (p != 7.0)).all()) for p in network.parameters())


def slopes(network, x, n_events):
    """The gradient of a smooth function of the output with respect to x, kept differentiable."""
    x = x.clone().requires_grad_()
    return torch.autograd.grad(torch.sin(network(x, n_events)).sum(), x, create_graph=True)[0]


@by_name
def test_no_parameter_is_dead(name) -> None:
    network, x, n_events = small(name)
    torch.sin(network(x, n_events)).square().sum().backward()
    sizes = {key: float(p.grad.abs().max()) for key, p in network.named_parameters()}
    assert min(sizes.values()) > 1e-6, sizes


@by_name
def test_second_derivatives_agree_with_differences(name) -> None:
    network, x, n_events = small(name)
    slopes(network, x, n_events).square().sum().backward()
    step = 1e-5
    directions = [torch.randn_like(p) for p in network.parameters()]
    pairs = list(zip(network.parameters(), directions, strict=True))
    exact = sum(float((p.grad * d).sum()) for p, d in pairs)
    values = []
    for sign in (1, -2):
        for p, d in pairs:
            p.data += sign * step * d
        values.append(float(slopes(network, x, n_events).detach().square().sum()))
    assert (values[0] - values[1]) / (2 * step) == pytest.approx(exact, rel=1e-5)
    assert exact != 0


@by_name
def test_runs_where_its_weights_are(name) -> None:
    """On the device "meta", a tensor made elsewhere by the forward pass is an error."""
    shape, sizes = SMALL[name]
    network = embedding(name, shape, **sizes).to("meta")
    seen = network(torch.randn(2, *shape, device="meta"))
    assert seen.device.type == "meta" and seen.shape == (2, 32)


def padded(x, n_events, value):
    absent = torch.arange(x.shape[1]) >= n_events[:, None]
    return torch.where(absent[..., None], value, x)


def ignores_padding(network, x, n_events) -> bool:
    clean = network(x, n_events)
    return all(
        torch.equal(network(padded(x, n_events, value), n_events), clean)
        for value in (torch.nan, 1e30, -torch.inf, torch.randn_like(x))
    )


@by_set
def test_padding_is_never_read(name) -> None:
    network, x, n_events = small(name)
    assert ignores_padding(network, x, n_events)
    dirty = padded(x, n_events, torch.nan).requires_grad_()
    network(dirty, n_events).square().sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in network.parameters()) and bool(dirty.grad.isfinite().all())
    assert torch.equal(dirty.grad.abs().sum(-1) > 0, torch.arange(5) < n_events[:, None])


def test_padding_saboteur() -> None:
    _, x, n_events = small("sets")
    assert not ignores_padding(as_embedding(Careless(), (5, 3)).double(), x, n_events)


def ignores_order(network, x, n_events) -> bool:
    clean = network(x, n_events)
    for k in range(6):
        n = 5 if n_events is None else int(n_events[k])
        moved = x.clone()
        moved[k, :n] = x[k, torch.randperm(n)]
        if not torch.allclose(network(moved, n_events), clean, rtol=0, atol=1e-12):
            return False
    return True


@by_set
def test_order_of_events_does_not_matter(name) -> None:
    network, x, n_events = small(name)
    assert ignores_order(network, x, n_events) and ignores_order(network, x, None)


def test_order_saboteur() -> None:
    _, x, _ = small("sets")
    assert not ignores_order(embedding("mlp", (5, 3)).double(), x, None)


@by_set
def test_no_events_and_their_number(name) -> None:
    network, x, _ = small(name)
    empty = network(x, torch.zeros(6, dtype=torch.int64))
    assert bool(empty.isfinite().all()) and bool((empty == empty[0]).all())
    assert torch.equal(network(x, torch.full((6,), 5)), network(x))
    assert torch.equal(network(x, torch.full((6,), 5, dtype=torch.int32)), network(x))
    same = x[:1, :1].expand(5, 5, 3)
    assert len(network(same, torch.arange(1, 6)).unique(dim=0)) == 5


COPIES = {
    "flips": [lambda x: x.flip(-1), lambda x: x.flip(-2), lambda x: x.flip(-2, -1)],
    "rotations": [lambda x, k=k: x.rot90(k, (-2, -1)) for k in (1, 2, 3)],
    "dihedral": [lambda x: x.flip(-1), lambda x: x.rot90(1, (-2, -1)), lambda x: x.mT],
    "reversal": [lambda x: x.flip(1)],
}


@pytest.mark.parametrize(
    ("name", "symmetry"),
    [(name, group) for name, recipe in EMBEDDINGS.items() for group in recipe.symmetries if group in COPIES],
)
def test_symmetry_is_exact_and_no_more_than_asked(name, symmetry) -> None:
    network, x, _ = small(name, symmetry=symmetry)
    assert all(invariant(network, x, copy) for copy in COPIES[symmetry])
    plain = small(name)[0]
    assert not any(invariant(plain, x, copy) for copy in COPIES[symmetry])
    others = {"flips": "rotations", "rotations": "flips"}.get(symmetry)
    if others:  # the half turn belongs to both groups, the first of each to one
        assert not invariant(network, x, COPIES[others][0])
    assert not invariant(network, x, lambda x: x.roll(1, 1 if name == "series" else -1))


def test_series_keeps_steps_and_numbers_apart() -> None:
    x = torch.randn(2, 20, 2)
    assert torch.equal(embedding("series", (20, 2)).network[0](x), x.mT)


def test_series_of_one_number_a_step() -> None:
    network = embedding("series", (30,), symmetry="reversal").double()
    x = torch.randn(3, 30).double()
    assert invariant(network, x, lambda x: x.flip(1)) and not invariant(network, x, lambda x: x.roll(1, 1))


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("cn", (8, 8)), {}, r"unknown embedding 'cn': did you mean 'cnn'\? Known: attention, cnn, mlp"),
        (
            ("cnn", (10,)),
            {},
            r"x_shape = \(10,\), expected \(H, W\) or \(C, H, W\).*choose one of mlp, residual, series",
        ),
        (("resnet", (1, 2, 3, 4)), {}, r"expected \(H, W\) or \(C, H, W\).*choose one of mlp, residual\."),
        (("sets", (10,)), {}, r"expected \(n_max, F\)"),
        (("series", (2, 8, 8)), {}, r"expected \(T,\) or \(T, F\)"),
        (("mlp", ()), {}, r"x_shape = \(\), expected one or more positive integers"),
        (("mlp", (3, 0)), {}, r"x_shape = \(3, 0\)"),
        (("cnn", (8, 8)), {"widht": 3}, r"'cnn' has no option 'widht': did you mean 'width'\?"),
        (("mlp", (8,)), {"width": 3}, r"'mlp' has no option 'width'.*Known: features, hidden"),
        (("cnn", (8, 8)), {"width": 0}, r"width = 0, expected a positive integer"),
        (("cnn", (8, 8)), {"features": 2.5}, r"features = 2\.5, expected a positive integer"),
        (("mlp", (8,)), {"hidden": 64}, r"hidden = 64, expected positive integers, such as \(64, 64\)"),
        (("residual", (8,)), {"hidden": []}, r"hidden is empty"),
        (("attention", (8, 2)), {"width": 6, "heads": 4}, r"width = 6 is no multiple of heads = 4"),
        (("cnn", (8, 8)), {"symmetry": "rotation"}, r"unknown symmetry 'rotation': did you mean 'rotations'\?"),
        (("cnn", (8, 9)), {"symmetry": "dihedral"}, r"'dihedral' needs square images; got \(8, 9\).*'flips'"),
        (("mlp", (8, 8)), {"symmetry": "flips"}, r"unknown symmetry 'flips': Known: none"),
        (("sets", (8, 2)), {"symmetry": "reversal"}, r"Known: permutation"),
    ],
)
def test_what_cannot_be_built(arguments, options, message) -> None:
    with pytest.raises(InputError, match=message):
        embedding(*arguments, **options)


@pytest.mark.parametrize(
    ("name", "x", "n_events", "message"),
    [
        ("sets", (2, 5, 4), None, r"x has shape \(2, 5, 4\), expected \(N, 5, 3\)"),
        ("sets", (5, 3), None, r"x has shape \(5, 3\), expected \(N, 5, 3\)"),
        ("sets", (2, 5, 3), [1, 2, 3], r"n_events has shape \(3,\).*expected integers \(2,\)"),
        ("sets", (2, 5, 3), [1.0, 2.0], r"type torch.float32, expected integers"),
        ("sets", (2, 5, 3), [1, 6], r"n_events runs from 1 to 6, expected 0 to 5"),
        ("sets", (2, 5, 3), [-1, 5], r"n_events runs from -1 to 5"),
        ("mlp", (2, 3, 4), [1, 2], r"n_events is given, and Sequential does not read it"),
    ],
)
def test_what_cannot_be_read(name, x, n_events, message) -> None:
    shape, sizes = SMALL[name]
    with pytest.raises(InputError, match=message):
        embedding(name, shape, **sizes)(torch.zeros(x), None if n_events is None else torch.tensor(n_events))
