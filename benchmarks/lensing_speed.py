"""Speed and accuracy of images of strong lenses.

    python benchmarks/lensing_speed.py [--images 400] [--repeats 5] [--corners 8]

Three tables, on one thread:

- images per second of CPU time at f_sub = .05, beta = -.9 and over the prior, hosts drawn as in the preset;
- side by side with a plain loop over subhalos in NumPy, in the same run and alternating, for lenses of the fiducial
  host with a given number of subhalos; both end with Poisson counts;
- the error of the expected image in units of the noise of a pixel, against a direct sum in float64.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from sbi_core.simulators import StrongLensing
from sbi_core.simulators.lens_cosmology import ARCSEC, Host, concentration, scale_radius
from sbi_core.simulators.lens_deflection import deflectors, direct_deflection
from sbi_core.simulators.lens_images import FWHM, HALF_LIGHT, SKY_COUNTS, SOURCE_COUNTS
from sbi_core.simulators.subhalos import Subhalos, draw_log_mass

FIDUCIAL = torch.tensor([0.05, -0.9], dtype=torch.float64)
PRESETS: dict[str, dict[str, object]] = {
    "full, m_min 1e7": {},
    "full, m_min 1e8": {"m_min": 1e8, "m_calibration": 1e7},
    "mini": {"preset": "mini"},
    "catalogue": {"preset": "catalogue"},
}
CORNERS = {  # theta, sigma_v, z_l
    "fiducial": ((0.05, -0.9), 225.0, 10**-0.25),
    "most subhalos": ((0.2, -1.5), 225.0, 10**-0.25),
    "heaviest": ((0.2, -0.5), 225.0, 10**-0.25),
    "near lens": ((0.2, -0.9), 225.0, 0.15),
    "far lens": ((0.2, -0.9), 250.0, 1.0),
    "large lens": ((0.2, -0.9), 325.0, 0.3),
}


def seconds(run: Callable[[], object]) -> float:
    started = time.process_time()
    run()
    return time.process_time() - started


def fixed(n: int, sigma_v: float, z_l: float, generator: torch.Generator) -> Host:
    offset = 0.2 * torch.randn(2, n, generator=generator, dtype=torch.float64)
    return Host(*(torch.full((n,), value, dtype=torch.float64) for value in (sigma_v, z_l)), *offset)


def throughput(images: int, repeats: int) -> None:
    print(f"{'images per CPU second':24s}{'theta':>12s}{'subhalos':>10s}{'median':>9s}{'least':>8s}{'most':>8s}")
    for name, options in PRESETS.items():
        world, generator = StrongLensing(**options), torch.Generator().manual_seed(0)
        for where in ("fiducial", "prior"):
            found, counts = [], []
            for _ in range(repeats + 1):
                theta = FIDUCIAL.expand(images, 2)
                if where == "prior":
                    unit = torch.rand(images, 2, generator=generator, dtype=torch.float64)
                    theta = torch.lerp(world.prior.low, world.prior.high, unit)
                parts = theta.split(world.rows_per_seed)
                started = time.process_time()
                latents = [world.sample(part, None, generator)[1] for part in parts]
                found.append(images / (time.process_time() - started))
                counts.append(float(torch.cat(latents)[:, 0].mean()))
            found = found[1:]  # the first round builds tables
            line = f"{name:24s}{where:>12s}{statistics.mean(counts):10.1f}{statistics.median(found):9.0f}"
            print(f"{line}{min(found):8.0f}{max(found):8.0f}")


def numpy_loop(world: StrongLensing, host: Host, subhalos: Subhalos, rng: np.random.Generator) -> np.ndarray:
    """Images (M, 64, 64), halo by halo."""
    axis = 0.1 * (np.arange(64) - 31.5)
    x, y = np.meshgrid(axis, axis)
    away = np.hypot(x, y)
    radius, focus, distance = (value.numpy() for value in (host.einstein_radius, host.focus(), host.distance))
    peak = SOURCE_COUNTS * 0.01 * 1.6783469900166605**2 / (2 * math.pi * HALF_LIGHT**2)
    images = []
    for k in range(len(host)):
        bent = radius[k] * np.stack([x / away, y / away])
        for j in np.flatnonzero(subhalos.lens.numpy() == k):
            mass = float(subhalos.mass[j])
            c = float(concentration(subhalos.mass[j]))
            scale = float(scale_radius(subhalos.mass[j])) / distance[k] / ARCSEC
            dx, dy = x - float(subhalos.x[j]), y - float(subhalos.y[j])
            r = np.hypot(dx, dy)
            u = r / scale
            root = np.sqrt(np.abs(1 - u * u))
            inner = np.arctanh(np.where(u < 1, root, 0)) / root
            inside = np.log(u / 2) + np.where(u < 1, inner, np.arctan(root) / root)
            strength = focus[k] * mass / (math.log1p(c) - c / (1 + c))
            bent += strength * inside / r**2 * np.stack([dx, dy])
        at = np.hypot(x - bent[0] - float(host.source_x[k]), y - bent[1] - float(host.source_y[k]))
        light = peak * np.exp(-1.6783469900166605 * at / HALF_LIGHT) + SKY_COUNTS * 0.01
        images.append(rng.poisson(gaussian_filter(light, FWHM / 2.354820045 / 0.1, mode="nearest")))
    return np.stack(images)


def side_by_side(repeats: int) -> None:
    world, generator, rng = StrongLensing(), torch.Generator().manual_seed(1), np.random.default_rng(1)
    print(f"\n{'subhalos a lens':>16s}{'loop':>10s}{'simulator':>11s}   images per CPU second, medians{'ratio':>9s}")
    for n in (1, 10, 100, 500, 2000):
        images, few = 32, max(1, min(32, 400 // n))
        host = fixed(images, 225.0, 10**-0.25, generator)
        lens = torch.arange(images).repeat_interleave(n)
        unit = torch.rand(3, len(lens), generator=generator, dtype=torch.float64)
        low, top = torch.full_like(unit[0], math.log(1e7)), (0.01 * host.mass).log()[lens]
        mass = draw_log_mass(unit[0], torch.full_like(unit[0], -0.9), low, top).exp()
        away, turn = host.region[lens] * unit[1].sqrt(), 2 * math.pi * unit[2]
        subhalos = Subhalos(lens, mass, away * turn.cos(), away * turn.sin())
        small, less = host[:few], subhalos[subhalos.lens < few]

        def ours(host: Host = host, subhalos: Subhalos = subhalos) -> None:
            torch.poisson(world.expected_image(host, subhalos), generator=generator)

        def loop(host: Host = small, subhalos: Subhalos = less) -> None:
            numpy_loop(world, host, subhalos, rng)

        rates = [(few / seconds(loop), images / seconds(ours)) for _ in range(repeats + 1)][1:]
        ratio = statistics.median(b / a for a, b in rates)
        medians = [statistics.median(side) for side in zip(*rates, strict=True)]
        print(f"{n:16d}{medians[0]:10.1f}{medians[1]:11.1f}{ratio:41.1f}")


def accuracy(corners: int) -> None:
    world, generator = StrongLensing(), torch.Generator().manual_seed(2)
    camera, axis = world._camera, world._bender.axis
    spread = camera.spread.double()
    x, y = torch.meshgrid(axis, axis, indexing="xy")
    print(f"\n{'error over noise':20s}{'images':>8s}{'subhalos':>10s}{'rms':>9s}{'99.9%':>9s}{'max':>9s}")
    for name, (theta, sigma_v, z_l) in {**CORNERS, "prior": ((0.0, 0.0), 0.0, 0.0)}.items():
        n = corners if name != "prior" else 10 * corners
        host = world.draw_hosts(n, generator) if name == "prior" else fixed(n, sigma_v, z_l, generator)
        at = torch.tensor(theta, dtype=torch.float64).expand(n, 2)
        if name == "prior":
            unit = torch.rand(n, 2, generator=generator, dtype=torch.float64)
            at = torch.lerp(world.prior.low, world.prior.high, unit)
        subhalos = world.draw_subhalos(at, host, generator)
        bent = direct_deflection(axis, n, subhalos, *deflectors(host, subhalos))
        bent += host.einstein_radius[:, None, None, None] * torch.stack([x, y]) / torch.hypot(x, y)
        source = [place[:, None, None] for place in (host.source_x, host.source_y)]
        exact = spread @ camera.light(x - bent[:, 0] - source[0], y - bent[:, 1] - source[1]) @ spread.T
        error = ((world.expected_image(host, subhalos).double() - exact) / exact.sqrt()).abs().flatten()
        most = float(error.kthvalue(math.ceil(0.999 * len(error))).values)
        line = f"{name:20s}{n:8d}{len(subhalos) / n:10.0f}{float(error.square().mean().sqrt()):9.5f}"
        print(f"{line}{most:9.4f}{float(error.max()):9.4f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--corners", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(1)
    throughput(options.images, options.repeats)
    side_by_side(options.repeats)
    accuracy(options.corners)
