"""Copies of an observation under a group: drawn in training, all of them otherwise; scales that respect it."""

from collections import Counter

import pytest
import torch

from sbi_core import Parameter, Simulations
from sbi_core.errors import InputError
from sbi_core.estimators import RatioEstimator, carl, embedding, fit, load_estimator
from sbi_core.estimators.scaling import Scaler
from sbi_core.estimators.symmetries import SYMMETRIES, averaged, copied
from sbi_core.simulations import Info


def turned(x):
    """All eight copies of one image (P, P)."""
    return [torch.rot90(part, k, (0, 1)) for part in (x, x.flip(-1)) for k in range(4)]


def test_drawn_copies_are_those_of_the_group_each_as_often_as_the_others() -> None:
    torch.manual_seed(1)
    image = torch.randn(3, 3)
    found = copied(image.expand(4000, 3, 3), "dihedral", 1)
    counts = Counter(next(k for k, one in enumerate(turned(image)) if torch.equal(one, row)) for row in found)
    error = (4000 * 7 / 64) ** 0.5
    assert len(counts) == 8 and all(abs(count - 500) < 4 * error for count in counts.values())
    only = copied(image.expand(4000, 3, 3), "rotations", 1)
    assert {next(k for k, one in enumerate(turned(image)) if torch.equal(one, row)) for row in only} == {0, 1, 2, 3}


def test_copies_of_a_row_differ_and_rows_keep_their_places() -> None:
    torch.manual_seed(1)
    x = torch.randn(5, 1, 3, 3)
    found = copied(x, "dihedral", 3).unflatten(0, (3, 5))
    for row in range(5):
        copies = [found[k, row, 0] for k in range(3)]
        assert all(any(torch.equal(copy, one) for one in turned(x[row, 0])) for copy in copies)
        assert not any(torch.equal(copies[j], copies[k]) for j in range(3) for k in range(j))
    assert torch.equal(copied(x, "none", 1), x)


def test_one_copy_in_training_and_the_whole_group_otherwise() -> None:
    network, whole = (embedding("cnn", (8, 8), width=2, symmetry="dihedral", copies=n) for n in (1, None))
    whole.load_state_dict(network.state_dict())
    x = torch.randn(4, 8, 8)
    seen = []
    network.network.register_forward_hook(lambda module, given, out: seen.append(len(given[0])))
    first, second = network(x), network(x)
    assert seen == [4, 4] and not torch.equal(first, second), "one drawn copy each"
    assert torch.equal(network.eval()(x), whole(x)) and seen[-1] == 32
    torch.testing.assert_close(network(x.flip(-1)), network(x))
    torch.testing.assert_close(
        torch.stack([network.train()(x) for _ in range(600)]).mean(0), whole(x), atol=0.05, rtol=0
    )


def test_scales_of_pixels_leave_the_symmetry_as_it_is() -> None:
    torch.manual_seed(2)
    x = 5 + torch.rand(4, 4) * torch.randn(300, 4, 4)
    lopsided, even = Scaler((4, 4)), Scaler((4, 4))
    lopsided.adapt(x)
    even.adapt(x, symmetry="dihedral")
    for part in (even.shift, even.scale):
        assert all(torch.allclose(one, part) for one in turned(part))
    assert torch.allclose(even.shift, torch.stack(turned(lopsided.shift)).mean(0))
    assert not torch.allclose(lopsided.scale, lopsided.scale.mT, rtol=0.1), "saboteur: without it they differ"
    assert torch.equal(averaged(x[0], "none"), x[0])


def test_a_dead_pixel_does_not_silence_its_mirror_images() -> None:
    torch.manual_seed(1)
    x = torch.randn(300, 4, 4)
    x[:, 0, 1] = 7.0
    scaler = Scaler((4, 4))
    scaler.adapt(x, symmetry="dihedral")
    assert scaler.constant == [] and all(torch.allclose(one, scaler.scale) for one in turned(scaler.scale))
    assert float(scaler.scale[0, 2]) == pytest.approx(1, abs=0.2), "the mean of the seven that are alive"
    x[:, [0, 0, 3, 3], [0, 3, 0, 3]] = 7.0
    scaler.adapt(x, symmetry="dihedral")
    assert scaler.constant == [0, 3, 12, 15], "a whole orbit"


def test_an_estimator_with_scales_of_pixels_survives_a_file(tmp_path) -> None:
    torch.manual_seed(3)
    axes = (Parameter("a", -1, 1),)
    theta = torch.rand(60, 1).double() * 2 - 1
    x = 100 * torch.arange(64.0).reshape(8, 8) + torch.randn(60, 8, 8) * (1 + theta[:, :, None].float())
    rows = Simulations(theta, x, Info(axes))
    choice = {"name": "cnn", "width": 2, "features": 3, "symmetry": "dihedral", "copies": 1, "pooled": []}
    options = {"seed": 1, "max_epochs": 2, "progress": False}
    found = fit(RatioEstimator.from_data(rows, embedding=choice, hidden=[8]), carl, rows, **options).estimator
    assert found.x_scaler.shift.shape == (8, 8) and torch.allclose(found.x_scaler.shift, found.x_scaler.shift.mT)
    torch.testing.assert_close(found.log_likelihood(theta, x.mT), found.log_likelihood(theta, x), atol=1e-4, rtol=1e-3)
    found.save(tmp_path / "model")
    back = load_estimator(tmp_path / "model")
    assert torch.equal(back.log_likelihood(theta, x), found.log_likelihood(theta, x))
    assert back.embedding.copies == 1 and back.embedding.pooled == ()
    again = fit(RatioEstimator.from_data(rows, embedding=choice, hidden=[8]), carl, rows, **options).estimator
    assert torch.equal(again.log_likelihood(theta, x), found.log_likelihood(theta, x)), "copies follow the seed"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"symmetry": "dihedral", "copies": 9}, r"copies = 9, expected 1 to 8, the size of the group 'dihedral'"),
        ({"symmetry": "flips", "copies": 0}, r"copies = 0, expected 1 to 4"),
        ({"symmetry": "flips", "copies": True}, r"copies = True, expected 1 to 4"),
        ({"copies": 2}, r"copies = 2, expected 1 to 1, the size of the group 'none'"),
        ({"symmetry": "dihedral", "pooled": [0]}, r"pooled = \[0\] with symmetry 'dihedral', .*: pool both"),
        ({"pooled": [2]}, r"pooled = \[2\], expected axes of x_shape = \(8, 8\), from 0 to 1"),
    ],
)
def test_what_does_not_fit(options, message) -> None:
    with pytest.raises(InputError, match=message):
        embedding("cnn", (8, 8), **options)


def test_groups_are_groups() -> None:
    x = torch.arange(16.0).reshape(1, 4, 4)
    for name in ("flips", "rotations", "dihedral"):
        images = {tuple(copy.flatten().tolist()) for copy in copied(x, name, len(SYMMETRIES[name]))}
        again = {tuple(c.flatten().tolist()) for one in copied(x, name, len(SYMMETRIES[name]))
                 for c in copied(one[None], name, len(SYMMETRIES[name]))}  # fmt: skip
        assert images == again and len(images) == len(SYMMETRIES[name])
