"""Strong lensing of a galaxy by a halo full of subhalos: what is the law of their masses?"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from sbi_core.errors import InputError, MissingGold
from sbi_core.parameters import Parameter
from sbi_core.simulations import Simulations
from sbi_core.simulator import Simulator
from sbi_core.simulators.lens_cosmology import Host
from sbi_core.simulators.lens_deflection import Bender
from sbi_core.simulators.lens_hosts import TOP, choose, draw_hosts, host_grid
from sbi_core.simulators.lens_images import Camera
from sbi_core.simulators.lens_pictures import draw_catalogues, draw_images
from sbi_core.simulators.subhalo_catalogue import Catalogue
from sbi_core.simulators.subhalos import MassFunction, Subhalos, draw_log_mass

_IMAGES = 16  # images made together


class StrongLensing(Simulator):
    """A distant galaxy seen through a halo whose subhalos disturb the arcs; x (P, P), float32, is an image in counts.

    theta = (f_sub, beta): the share of the halo's mass in subhalos, and their law dn / d ln m ~ m^beta. A lens:

    - Host: redshift z_l = 10^N(-.25, .25), at most 1; velocity dispersion sigma_v ~ N(225, 50) km/s, at least 50; NFW
      halo of mass M = 10^12.09 (sigma_v / 100)^3.48 and a singular isothermal sphere with Einstein radius theta_E =
      4 pi (sigma_v / c)^2 D_ls / D_s. Source at redshift 1.5, its offset N(0, .2) arcsec along each axis.
    - Subhalos in the disk of two theta_E, which holds the mass w M of the host: n ~ Poisson(lambda), uniform places,
      masses from m^(beta - 1) between m_min and .01 M, lambda = w f_sub M J_0 / J_1 (`subhalos`), J_1 from
      m_calibration on. Each is an untruncated NFW deflector at z_l (`lens_deflection`).
    - Image of an exponential disk of magnitude 23, sky, point spread, Poisson noise (`lens_images`).

    z (6,) = (n, S, sigma_v, z_l, offset x, offset y), S the sum of ln m, tells all of log p(x, z | theta) that depends
    on theta: n ln lambda - lambda + (beta - 1) S - n ln J_0. For sigma_v = 225, z_l = 10^-.25 and theta = (.05, -.9),
    lambda = 90.14 and z has the Fisher information ((36055, -8416), (-8416, 2075)); 11.34 subhalos exceed 1e8.

    | preset | masses from | host | x |
    |---|---|---|---|
    | full | 1e7 | drawn | image of 64 x 64 pixels of .1 arcsec |
    | mini | 1e9 | fixed: sigma_v = 225, z_l = 10^-.25 | image of 32 x 32 pixels of .2 arcsec, of four points each |
    | catalogue | 1e8 | fixed | log10 of measured masses, zeros behind; exact likelihood (`subhalo_catalogue`) |

    What the code of arXiv:1909.02005 does otherwise, `conventions="paper2019"`:

    | | physics | paper2019 |
    |---|---|---|
    | slope | dn / d ln m ~ m^beta | the same; the code's own beta, of dn / dm, is smaller by 1 |
    | D_ls where subhalos bend light | angular diameter distance from lens to source | D_s - D_l |
    | w | mass in the disk over M | without the 1 / m(c) of the host: lambda = 100.22, not 90.14 |
    | number and masses | drawn once | drawn anew until the masses' sum is below w M; gold lacks that normaliser |
    | m_min | 1e7 | 1e7, where the paper says 1e6 |
    | points | centres of pixels | from edge to edge of the frame, .1016 arcsec apart, each for .01 arcsec^2 |
    | source | normalised exactly | with 3.8 for 3.803 and a series for b |
    | point spread | sigma = FWHM / 2.355 = .076 arcsec, the edge continued | .053 arcsec, darkness beyond the edge |
    | noise | after the point spread | before it |

    Not imitated: scores by finite differences, rounded constants of nature, neutrinos (below .2% of distances), and
    velocity dispersions below 50 km/s (2 hosts in 10,000, drawn anew here).

    Args:
        preset: "full", "mini" or "catalogue"; what follows overrides it.
        conventions: "physics" or "paper2019".
        m_min: lightest subhalo, solar masses.
        m_calibration: lower end of the masses that f_sub counts; m_min unless given, but 1e7 in preset full where m_min
            is above it, so that a higher floor leaves f_sub its meaning.
        n_pixels: P, along each side.
        pixel_size: in arcsec.
        oversampling: points of light along each side of a pixel.
        sigma_v: fixes the velocity dispersion.
        z_l: fixes the redshift of the lens.
        offset: fixes the offset (x, y) of the source in arcsec.
        m_half: of a catalogue: mass at which half of the subhalos are found.
        width: of a catalogue: width in dex of the rise of that share.
        error: of a catalogue: standard deviation of measured masses in dex.

    Raises:
        InputError: for options that do not exist or do not fit.

    Example:
        >>> lensing, theta = StrongLensing(sigma_v=225, z_l=10**-0.25), torch.tensor([0.05, -0.9], dtype=torch.float64)
        >>> round(float(lensing.expected_subhalos(theta, lensing.draw_hosts(1, torch.Generator()))), 2)
        90.14
    """

    parameters = (
        Parameter("f_sub", 0.001, 0.2, latex=r"f_\mathrm{sub}"),
        Parameter("beta", -1.5, -0.5, latex=r"\beta"),
    )
    rows_per_seed = 100

    def __init__(
        self,
        preset: str = "full",
        *,
        conventions: str = "physics",
        m_min: float | None = None,
        m_calibration: float | None = None,
        n_pixels: int | None = None,
        pixel_size: float | None = None,
        oversampling: int | None = None,
        sigma_v: float | None = None,
        z_l: float | None = None,
        offset: Sequence[float] | None = None,
        m_half: float | None = None,
        width: float | None = None,
        error: float | None = None,
    ) -> None:
        given = {"m_min": m_min, "m_calibration": m_calibration, "sigma_v": sigma_v, "z_l": z_l, "offset": offset}
        image = {"n_pixels": n_pixels, "pixel_size": pixel_size, "oversampling": oversampling}
        chosen = choose(preset, conventions, given, image, {"m_half": m_half, "width": width, "error": error})
        self.preset, self.conventions = preset, conventions
        self.m_min, self.m_calibration = chosen["m_min"], chosen["m_calibration"]
        self.sigma_v, self.z_l, self.offset = chosen["sigma_v"], chosen["z_l"], chosen["offset"]
        self._published = conventions == "paper2019"
        self._masses = MassFunction(self.m_min, self.m_calibration)
        if self.is_exact:
            self.m_half, self.width, self.error = chosen["m_half"], chosen["width"], chosen["error"]
            region, top = self._limits(self.draw_hosts(1, torch.Generator()))
            ends = [tuple(getattr(axis, end) for axis in self.parameters) for end in ("low", "high")]
            self._catalogue = Catalogue(
                self._masses, float(region), float(top), self.m_half, self.width, self.error, *ends
            )
            self.x_shape = (self._catalogue.n_max,)
            self.rows_per_seed = 1000
        else:
            self.n_pixels, self.pixel_size = chosen["n_pixels"], chosen["pixel_size"]
            self.oversampling = chosen["oversampling"]
            self._camera = Camera(self.n_pixels, self.pixel_size, self.oversampling, self._published)
            self._bender = Bender(self._camera.points, self._camera.step, self.m_min, self._published)
            self.x_shape = (self.n_pixels, self.n_pixels)

    @property
    def is_exact(self) -> bool:
        """Whether `log_likelihood` exists: of a catalogue."""
        return self.preset == "catalogue"

    def sample(self, theta: Tensor, design: Tensor | None, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw images x (M, P, P), or catalogues (M, n_max), and z (M, 6) at theta (M, 2)."""
        host = self.draw_hosts(len(theta), generator)
        subhalos = self.draw_subhalos(theta, host, generator)
        if self.is_exact:
            x = self._catalogue.sample(subhalos, len(host), generator)
        else:
            x = torch.cat([self._camera.expose(light, generator) for light in self._light(host, subhalos)])
        sums = subhalos.totals(subhalos.mass.log(), len(host))
        return x, torch.cat([subhalos.counts(len(host))[:, None], sums[:, None], host.columns], 1)

    def log_joint(self, theta: Tensor, x: Tensor, z: Tensor | None, design: Tensor | None) -> Tensor:
        """n ln lambda - lambda + (beta - 1) S - n ln J_0 (M,) at theta (M, 2), z (M, 6); x is not looked at."""
        if z is None:
            raise MissingGold(f"simulator '{self.name}': the simulations were stored without z.")
        return self._masses.log_probability(theta, z[:, 0], z[:, 1], *self._limits(Host(*z[:, 2:].unbind(-1))))

    def log_likelihood(self, theta: Tensor, x: Tensor, design: Tensor | None = None) -> Tensor:
        """Exact log p(x | theta) (*) of catalogues, theta (*, 2), x (*, n_max); of images it is not known."""
        self._need_catalogue("log_likelihood")
        return self._catalogue.log_likelihood(theta, x)

    def score(self, theta: Tensor, x: Tensor, design: Tensor | None = None) -> Tensor:
        """Exact gradient of log p(x | theta) (*, 2) of catalogues, theta (*, 2), x (*, n_max)."""
        self._need_catalogue("score")
        return self._catalogue.score(theta, x)

    def fisher_information(self, theta: Tensor, design: Tensor | None = None, *, latent: bool = False) -> Tensor:
        """Fisher information (*, 2, 2) at theta (*, 2) of catalogues, or with `latent` of z, averaged over hosts."""
        theta = theta.to(torch.float64)
        if not latent:
            self._need_catalogue("fisher_information without latent=True")
            return self._catalogue.information(theta)
        host, weights = host_grid(self.sigma_v, self.z_l)
        each = self._masses.information(theta[..., None, :], *self._limits(host))
        return (weights[:, None, None] * each).sum(-3)

    def expected_subhalos(self, theta: Tensor, host: Host) -> Tensor:
        """lambda (M,) at theta (M, 2) or (2,), for hosts (M,)."""
        return self._masses.log_expected(theta.to(torch.float64), *self._limits(host)).exp()

    def draw_hosts(self, n: int, generator: torch.Generator) -> Host:
        """Draw n lens galaxies and the places of their sources, (n,) each."""
        return draw_hosts(n, generator, self.sigma_v, self.z_l, self.offset)

    def draw_subhalos(self, theta: Tensor, host: Host, generator: torch.Generator) -> Subhalos:
        """Draw the subhalos of hosts (M,) at theta (M, 2) or (2,)."""
        region, _ = self._limits(host)
        theta = theta.to(torch.float64).expand(len(host), 2)
        subhalos = self._draw_once(theta, host, generator)
        if not self._published:
            return subhalos
        while bool((heavy := subhalos.totals(subhalos.mass, len(host)).log() > region).any()):
            again = self._draw_once(theta[heavy], host[heavy], generator)
            rows = heavy.nonzero()[:, 0]
            kept = subhalos[~heavy[subhalos.lens]]
            subhalos = kept.joined(Subhalos(rows[again.lens], again.mass, again.x, again.y))
        return subhalos

    def _draw_once(self, theta: Tensor, host: Host, generator: torch.Generator) -> Subhalos:
        lens = torch.poisson(self.expected_subhalos(theta, host), generator=generator).to(torch.int64)
        lens = torch.arange(len(host)).repeat_interleave(lens)
        unit = torch.rand(3, len(lens), generator=generator, dtype=torch.float64)
        top = self._limits(host)[1][lens]
        mass = draw_log_mass(unit[0], theta[lens, 1], torch.full_like(top, math.log(self.m_min)), top).exp()
        radius, turn = host.region[lens] * unit[1].sqrt(), 2 * math.pi * unit[2]
        return Subhalos(lens, mass, radius * turn.cos(), radius * turn.sin())

    def expected_image(self, host: Host, subhalos: Subhalos) -> Tensor:
        """Expected counts (M, P, P), float32, of hosts (M,) with these subhalos: an image without noise."""
        if self.is_exact:
            raise InputError("StrongLensing: preset 'catalogue' makes no images. Use preset 'mini' or 'full'.")
        if len(subhalos) and not 0 <= int(subhalos.lens.min()) <= int(subhalos.lens.max()) < len(host):
            ends = f"{int(subhalos.lens.min())} to {int(subhalos.lens.max())}"
            raise InputError(f"subhalos belong to lenses {ends}, expected 0 to {len(host) - 1}, as many as hosts.")
        return torch.cat([self._camera.expected(light) for light in self._light(host, subhalos)])

    def draw(self, axes: Any, simulations: Simulations) -> None:
        """Draw eight images x (N, P, P) from few subhalos to many, or the masses found in catalogues x (N, n_max)."""
        (draw_catalogues if self.is_exact else draw_images)(axes, simulations)

    def _limits(self, host: Host) -> tuple[Tensor, Tensor]:
        """Logarithms (M,) of the host's mass in the region and of the heaviest subhalo's."""
        return host.region_mass(as_published=self._published).log(), (TOP * host.mass).log()

    def _light(self, host: Host, subhalos: Subhalos) -> Iterator[Tensor]:
        """Yield the light at the points of some images after the other, (B, P, P)."""
        axis, subhalos = self._bender.axis.to(torch.float32), subhalos.sorted()
        for first in range(0, len(host), _IMAGES):
            some = host[first : first + _IMAGES]
            these = subhalos.between(first, first + len(some))
            bent = self._bender.subhalos(some, these) + self._bender.host(some)
            x = axis - bent[:, 0] - some.source_x.to(torch.float32)[:, None, None]
            y = axis[:, None] - bent[:, 1] - some.source_y.to(torch.float32)[:, None, None]
            yield self._camera.light(x, y)

    def _need_catalogue(self, what: str) -> None:
        if not self.is_exact:
            raise NotImplementedError(
                f"simulator '{self.name}': {what} is not known for images (preset '{self.preset}'). Use preset "
                "'catalogue', or learn it."
            )
