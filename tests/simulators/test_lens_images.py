import lenses_by_hand as by_hand
import numpy as np
import pytest
import torch
from measures import z_of_mean
from scipy.integrate import quad

from sbi_core.simulators.lens_images import EXPOSURE, FWHM, SKY_COUNTS, SOURCE_COUNTS, Camera, counts_per_second

SIGMA = FWHM / 2.354820045


def light(camera, x0=0.0, y0=0.0):
    """The source seen without a lens, (1, P, P), float64."""
    axis = (torch.arange(camera.points, dtype=torch.float64) - (camera.points - 1) / 2) * camera.step
    x, y = torch.meshgrid(axis - x0, axis - y0, indexing="xy")
    return camera.light(x[None], y[None])


def test_magnitudes():
    assert counts_per_second(25.5) == 1 and counts_per_second(23.0) == pytest.approx(10)
    assert pytest.approx(16_100) == SOURCE_COUNTS and pytest.approx(1610 * 10**1.2) == SKY_COUNTS
    assert EXPOSURE == 1610


@pytest.mark.parametrize(("x0", "y0"), [(0.0, 0.0), (0.031, -0.27), (0.4, 0.55)])
def test_source_has_its_counts_wherever_it_is(x0, y0):
    camera = Camera(64, 0.1, 8)
    image = camera.bin(light(camera, x0, y0)) - SKY_COUNTS * 0.01
    assert float(image.sum()) == pytest.approx(SOURCE_COUNTS, rel=2e-3)
    assert float(image.sum()) != pytest.approx(1.01 * SOURCE_COUNTS, rel=2e-3), "saboteur"
    spread = camera.expected(light(camera, x0, y0).float()).double() - SKY_COUNTS * 0.01
    assert float(spread.sum()) == pytest.approx(float(image.sum()), rel=2e-4), "the point spread loses nothing"


def test_light_is_that_of_the_disk():
    camera = Camera(64, 0.1)
    axis = camera.step * (np.arange(64) - 31.5)
    hand = by_hand.exponential(np.hypot(axis[None, :] - 0.1, axis[:, None] + 0.05))
    assert np.allclose(light(camera, 0.1, -0.05)[0].numpy(), hand, rtol=1e-12)
    assert not np.allclose(light(camera, 0.1, 0.05)[0].numpy(), hand, rtol=1e-3), "saboteur: y upside down"


def test_half_of_the_light_is_within_the_half_light_radius():
    camera = Camera(8, 0.1, 64)
    above = light(camera)[0] - SKY_COUNTS * 0.01
    axis = (torch.arange(512) - 255.5) * camera.step
    inside = torch.hypot(axis[None, :], axis[:, None]) < 0.2
    assert float(above[inside].sum() * (camera.step / 0.1) ** 2) == pytest.approx(SOURCE_COUNTS / 2, rel=2e-3)


@pytest.mark.parametrize("oversampling", [1, 2, 4])
def test_point_spread_has_the_variance_of_the_gaussian(oversampling):
    camera = Camera(32, 0.1, oversampling)
    row = camera.spread[camera.points // 2].double()
    away = (torch.arange(camera.points).double() - camera.points // 2) * camera.step
    assert float(row.sum()) == pytest.approx(1, abs=1e-6)
    assert float(row @ away**2) == pytest.approx(SIGMA**2, rel=1e-5)
    assert float(row @ away) == pytest.approx(0, abs=1e-7)
    point = torch.zeros(1, camera.points, camera.points)
    point[0, camera.points // 2, camera.points // 2] = 1
    blurred = camera.blur(point)[0]
    assert torch.allclose(blurred, blurred.T) and torch.allclose(blurred.double(), torch.outer(row, row), atol=1e-7)


def test_point_spread_on_a_fine_grid_is_the_gaussian():
    camera = Camera(32, 0.1, 8)
    row = camera.spread[camera.points // 2].double()
    away = (torch.arange(camera.points).double() - camera.points // 2) * camera.step
    gaussian = torch.exp(-(away**2) / (2 * SIGMA**2)) * camera.step / (SIGMA * np.sqrt(2 * np.pi))
    assert float((row - gaussian).abs().max() / gaussian.max()) < 0.005
    half = away[(row > row.max() / 2)].abs().max() * 2
    assert float(half) == pytest.approx(FWHM, abs=2 * camera.step)


def test_empty_sky_is_even_to_the_edge():
    camera = Camera(32, 0.2, 2)
    sky = torch.full((1, 64, 64), 100.0)
    assert torch.allclose(camera.expected(sky), torch.tensor(100.0))
    published = Camera(32, 0.1, 1, as_published=True)
    dark = published.blur(torch.full((1, 32, 32), 100.0))
    assert float(dark[0, 16, 16]) == pytest.approx(100, rel=1e-5) and float(dark[0, 0, 16]) < 90


def test_published_point_spread_is_too_narrow():
    row = Camera(64, 0.1, as_published=True).spread[32].double()
    away = (torch.arange(64).double() - 32) * 0.1
    sampled = torch.exp(-(away**2) / (2 * (0.18 * np.sqrt(np.log(2)) / 2**1.5) ** 2)) * (away.abs() < 0.25)
    assert torch.allclose(row, sampled / sampled.sum(), atol=2e-5)
    assert int((row > 0).sum()) == 5
    assert float(row @ away**2) < 0.5 * SIGMA**2


def test_noise_is_that_of_counts():
    camera, generator = Camera(16, 0.2, 2), torch.Generator().manual_seed(1)
    shown = light(camera, 0.1, 0.0).float()
    mean = camera.expected(shown).double()
    drawn = camera.expose(shown.expand(4000, -1, -1), generator).double()
    pull = (drawn - mean) / mean.sqrt()
    assert bool((drawn == drawn.round()).all())
    assert z_of_mean(pull.flatten(1).mean(1)) < 4 and z_of_mean((pull**2).flatten(1).mean(1), 1.0) < 4
    assert z_of_mean((drawn / mean.mul(1.01)).flatten(1).mean(1), 1.0) > 4, "saboteur"
    neighbours = (pull[:, :, 1:] * pull[:, :, :-1]).flatten(1).mean(1)
    assert z_of_mean(neighbours) < 4, "independent pixels"


def test_published_noise_comes_before_the_point_spread():
    camera, generator = Camera(16, 0.1, as_published=True), torch.Generator().manual_seed(1)
    shown = light(camera).float()
    drawn = camera.expose(shown.expand(4000, -1, -1), generator).double()
    assert z_of_mean((drawn - camera.blur(shown).double())[:, 4:12, 4:12].flatten(1).mean(1)) < 4
    pull = ((drawn - camera.blur(shown)) / camera.blur(shown).sqrt())[:, 4:12, 4:12]
    assert float((pull**2).mean()) < 0.5 and float((pull[:, :, 1:] * pull[:, :, :-1]).mean()) > 0.1


def test_ring_of_an_aligned_source():
    """All counts of a perfect ring: 2 pi times the integral of I(|r - theta_E|) r dr."""
    camera, radius = Camera(64, 0.1, 4), 1.3
    axis = (torch.arange(256, dtype=torch.float64) - 127.5) * camera.step
    x, y = torch.meshgrid(axis, axis, indexing="xy")
    away = torch.hypot(x, y)
    image = camera.bin(camera.light((x - radius * x / away)[None], (y - radius * y / away)[None]))
    counts = float((image - SKY_COUNTS * 0.01).sum())

    def ring(r):
        return (by_hand.exponential(abs(r - radius)) - SKY_COUNTS * 0.01) * 2 * np.pi * r / 0.01

    exact = quad(ring, 0, radius)[0] + quad(ring, radius, 4)[0]
    assert counts == pytest.approx(exact, rel=2e-3) and exact > 10 * SOURCE_COUNTS
