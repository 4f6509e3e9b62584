"""Muon pairs at an electron-positron collider near the Z: exact gold, exact likelihood, an energy to choose."""

import math
from typing import Any

import torch
from torch import Tensor

from sbi_core.errors import InputError, MissingGold
from sbi_core.parameters import Parameter
from sbi_core.simulations import Simulations
from sbi_core.simulator import LogLikelihood, Simulator
from sbi_core.simulators.electroweak import (
    HIGHEST,
    LOWEST,
    Envelope,
    coupling_slopes,
    couplings,
    dot,
    log_radiation,
    mean_propagators,
    outer,
    propagators,
)
from sbi_core.simulators.muon_detector import Detector, halves

_ROWS, _CANDIDATES, _TRIES = 1024, 10_000, 8


class MuonPairs(Simulator):
    """e+ e- -> gamma/Z -> mu+ mu-, seen through radiation and a detector; x = (c_obs, y_obs), one event a row.

    theta = (sin2_theta_w, g_f): the weak mixing angle, and the Fermi constant over its measured value. At tree level

        d sigma / dc = (pi alpha^2 / 2 s) / 4 [a (1 + c)^2 + b (1 - c)^2],  A_ij = 1 + g_f chi(s) g_i g_j,

    a = w_LR |A_LL|^2 + w_RL |A_RR|^2, b = (w_LR + w_RL) |A_LR|^2 (chi, g and w: `electroweak`). An event:

    - One of the beams, either with probability 1/2, radiates the fraction x of s along itself, with the leading-log
      density f(x) = eta x^(eta - 1) / .9^eta on (0, .9), eta = (2 alpha0 / pi) (ln(s / m_e^2) - 1). It leaves a pair of
      energy squared s (1 - x) and rapidity y = +-ln(1 - x) / 2.
    - c, the cosine of the muon's angle in the pair's rest frame, follows d sigma / dc at s (1 - x).
    - The charges are mistaken, c -> -c, with probability .01 + .03 c^4.
    - c_obs and y_obs are c and y with normal noise. The event is kept if c_obs is in the window, else drawn anew.

    z = (c, log x), float64, before the detector; (c,) without radiation. Their ranges are fixed, and

        log p(x, z | theta, design) = log d sigma / dc (c, s (1 - x)) + log[x f(x)] - log sigma_fid

    up to terms without theta and design, hence `design_score`. sigma_fid is the fiducial cross-section, `rate`, of all
    that is kept. Its gradient belongs to the score: with the whole cross-section instead, for 0 < c < .95 at 89 GeV,
    sin2_theta_w = .23153, g_f = 1 and nothing else on, E[t] is (-2.27, +.24).

    p(x | theta, design) is exact to 1e-9: six numbers of x, by quadrature, times six polynomials in theta. A fixed
    number of events at one energy without radiation tells a / b alone and leaves one direction of theta unknown; two
    energies, or the number of events, tell both. Unpolarised beams see sin2_theta_w and 1/2 - sin2_theta_w alike.

    Sources: the Z at LEP, Physics Reports 427 (2006) 257; gold, arXiv:1805.12244. To choose the energy of this
    experiment by simulation is the idea of "active sciencing" by K. Cranmer, L. Heinrich and G. Louppe.

    Args:
        sqrt_s: energy in GeV where there is no design. By default one below the Z, where angles tell both parameters.
        polarised: whether the polarisation of the electrons is a second axis of the design.
        polarisation: P- of the electrons where the design does not say it.
        positron_polarisation: P+ of the positrons.
        radiation: whether the beams radiate; y is 0 if not.
        flips: whether charges are mistaken.
        smearing: standard deviation of the noise of c_obs and of that of y_obs; may be 0.
        window: range of c_obs that is kept, or `None` for all.

    Designs: `sqrt_s`, 60 to 130 GeV, and with `polarised` also `polarisation`, -1 to 1.

    Raises:
        InputError: for settings, and in `sample` for rows of theta or design, outside their ranges.

    Example:
        >>> bare = MuonPairs(sqrt_s=91.1876, radiation=False, flips=False, smearing=0.0, window=None)
        >>> theta = torch.tensor([0.23153, 1.0])
        >>> round(float(bare.rate(theta)), 1), round(float(bare.forward_backward_asymmetry(theta)), 4)
        (1983.9, 0.0161)
    """

    parameters = (
        Parameter("sin2_theta_w", 0.20, 0.26, latex=r"\sin^2\theta_W"),
        Parameter("g_f", 0.5, 1.5, latex=r"G_F / G_F^0"),
    )
    x_shape = (2,)
    design_score = True

    def __init__(
        self,
        *,
        sqrt_s: float = 89.0,
        polarised: bool = False,
        polarisation: float = 0.0,
        positron_polarisation: float = 0.0,
        radiation: bool = True,
        flips: bool = True,
        smearing: float = 0.02,
        window: tuple[float, float] | None = (-0.95, 0.95),
    ) -> None:
        self.sqrt_s = sqrt_s
        self.polarised = polarised
        self.polarisation = polarisation
        self.positron_polarisation = positron_polarisation
        self.radiation = radiation
        self.flips = flips
        self.smearing = smearing
        self.window = None if window is None else tuple(window)
        energy = Parameter("sqrt_s", LOWEST, HIGHEST, unit="GeV", latex=r"\sqrt{s}")
        electron = Parameter("polarisation", -1.0, 1.0, latex="P_{e^-}")
        positron = Parameter("positron_polarisation", -1.0, 1.0)
        for axis, value in ((energy, sqrt_s), (electron, polarisation), (positron, positron_polarisation)):
            _check(axis, torch.tensor(value), "MuonPairs")
        self.designs = (energy, electron) if polarised else (energy,)
        self._setting(None)
        self._detector = Detector(flips, smearing, self.window)
        self._accepted = self._detector.integral(*self._detector.ends)

    def sample(self, theta: Tensor, design: Tensor | None, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw x (M, 2) and z (M, 2), or (M, 1) without radiation, at theta (M, 2): exactly, by rejection."""
        for axis, value in zip(self.parameters, theta.unbind(-1), strict=True):
            _check(axis, value, "theta")
        weights, s = self._at(theta, design)
        parts = zip(weights.split(_CANDIDATES), s.expand(len(theta)).split(_CANDIDATES), strict=True)
        events = torch.cat([self._events(*part, generator) for part in parts])
        return events[:, :2], events[:, 2 : 4 if self.radiation else 3]

    def log_joint(self, theta: Tensor, x: Tensor, z: Tensor | None, design: Tensor | None) -> Tensor:
        """log p(x, z | theta, design), theta (M, 2), z (M, 2) or (M, 1), design (M, K), as (M,); x is not looked at."""
        if z is None:
            raise MissingGold(f"simulator '{self.name}': the simulations were stored without z.")
        weights, s = self._at(theta, design)
        fiducial = dot(weights, self._fiducial(s)).log()
        if not self.radiation:
            return dot(weights, outer(halves(z[:, 0]), propagators(s))).log() - fiducial
        value = dot(weights, outer(halves(z[:, 0]), propagators(s * -torch.expm1(z[:, 1]))))
        return value.log() + log_radiation(z[:, 1], s) + z[:, 1] - fiducial

    def rate(self, theta: Tensor, design: Tensor | None = None) -> Tensor:
        """Fiducial cross-section in pb, of the events that are kept: theta (*, 2), design (*, K), as (*)."""
        weights, s = self._at(theta, design)
        return dot(weights, self._fiducial(s))

    def cross_section(self, theta: Tensor, design: Tensor | None = None) -> Tensor:
        """Cross-section in pb of all events, kept or not: theta (*, 2), design (*, K), as (*)."""
        weights, s = self._at(theta, design)
        return 8 / 3 * dot(weights, outer(torch.ones(2, dtype=torch.float64), self._energy(s)))

    def forward_backward_asymmetry(self, theta: Tensor, design: Tensor | None = None) -> Tensor:
        """(F - B) / (F + B) of kept events with c_obs above and below 0: theta (*, 2), design (*, K), as (*)."""
        (weights, s), (low, high) = self._at(theta, design), self._detector.ends
        difference = self._detector.integral(max(low, 0.0), high) - self._detector.integral(low, min(high, 0.0))
        return dot(weights, outer(difference, self._energy(s))) / dot(weights, self._fiducial(s))

    def log_likelihood(self, theta: Tensor, x: Tensor, design: Tensor | None = None) -> Tensor:
        """Exact log p(x | theta, design): theta (*, 2), x (*, 2), design (*, K), broadcasting to (*).

        Minus infinity outside the window. Without smearing x is (c, y), up to the sign of c, and the density of y
        diverges at 0; with neither smearing nor radiation y_obs is always 0, and this is the density of c_obs alone.
        """
        return self.observe(x, design)(theta)

    def observe(self, x: Tensor, design: Tensor | None = None, *, n_events: Tensor | None = None) -> LogLikelihood:
        """Read x (*, 2) once; return the function theta (*, 2) -> log p(x | theta, design) (*)."""
        numbers, rest = self._read(x, design)
        fiducial = self._fiducial(self._setting(design)[0])

        def log_p(theta: Tensor) -> Tensor:
            weights = self._at(theta, design)[0]
            return dot(weights, numbers).log() - dot(weights, fiducial).log() + rest

        return log_p

    def score(self, theta: Tensor, x: Tensor, design: Tensor | None = None) -> Tensor:
        """Exact grad_theta log p(x | theta, design): theta (*, 2), x (*, 2), design (*, K), as (*, 2)."""
        weights, s = self._at(theta, design)
        slopes = self._slopes(theta, design)
        numbers, fiducial = (
            dot(slopes, six[..., None, :]) / dot(weights, six)[..., None]
            for six in (self._read(x, design)[0], self._fiducial(s))
        )
        return numbers - fiducial

    def fisher_information(self, theta: Tensor, design: Tensor | None = None, *, latent: bool = False) -> Tensor:
        """Fisher information per event: theta (*, 2), design (*, K), as (*, 2, 2); in x, or with `latent` in (x, z).

        With v the differential and sigma the fiducial cross-section, the sum over all that is seen of
        (grad v) (grad v)^T / v, over sigma, less (grad log sigma) (grad log sigma)^T; by quadrature.
        """
        weights, s = self._at(theta, design)
        shape = torch.broadcast_shapes(weights.shape[:-1], s.shape)
        slopes = self._slopes(theta, design).expand(*shape, 2, 6).reshape(-1, 2, 2, 3)
        angle, at_angle = self._detector.angles(latent=latent)
        found = []
        rows = zip(weights.expand(*shape, 6).reshape(-1, 2, 3), slopes, s.expand(shape).reshape(-1), strict=True)
        for coupling, slope, one in rows:
            energy, at_energy = propagators(one)[None], torch.ones(1, dtype=torch.float64)
            if self.radiation:
                energy, at_energy = self._detector.boosts(one, latent=latent)
            each, change = angle @ coupling @ energy.mT, angle @ slope @ energy.mT
            area = at_angle[:, None] * at_energy
            total, growth = (area * each).sum(), (area * change).sum((-1, -2))
            square = torch.einsum("dcy,ecy->de", area * change / each, change)
            found.append(square / total - torch.outer(growth, growth) / total**2)
        return torch.stack(found).reshape(*shape, 2, 2)

    def draw(self, axes: Any, simulations: Simulations) -> None:
        """Draw c_obs of the N events, at up to three energies or in three ranges of them, with its exact density."""
        weights, s = self._at(simulations.theta, simulations.design)
        energy = s.sqrt().expand(len(weights)).contiguous()
        values = energy.unique()
        cuts = values[1:] if len(values) <= 3 else energy.quantile(torch.tensor([1 / 3, 2 / 3], dtype=torch.float64))
        part = torch.bucketize(energy, cuts, right=True)
        low, high = (min(max(end, -1.1), 1.1) for end in self._detector.ends)
        edges = torch.linspace(low, high, 39, dtype=torch.float64)
        c = torch.linspace(low, high, 400, dtype=torch.float64)
        numbers, factor = self._detector.angle_density(c)
        share = (weights.unflatten(-1, (2, 3)) @ self._energy(s)[..., None])[..., 0]
        share = share / dot(weights, self._fiducial(s))[:, None]
        for k, colour in enumerate(["#0072B2", "#D55E00", "#009E73"][: len(cuts) + 1]):
            mine = part == k
            counts = torch.histogram(simulations.x[mine, 0].double(), edges)[0]
            axes.stairs(counts / (mine.sum() * edges.diff()), edges, color=colour, alpha=0.25, fill=True)
            density = factor.exp() * (numbers @ share[mine].mean(0))
            ends = dict.fromkeys(f"{float(end):.4g}" for end in (energy[mine].min(), energy[mine].max()))
            axes.plot(c, density, color=colour, label=" to ".join(ends) + " GeV")
        axes.set(xlabel=r"$\cos\theta_\mathrm{obs}$", ylabel="density", xlim=(low, high), ylim=(0, None))
        axes.legend()

    def _at(self, theta: Tensor, design: Tensor | None) -> tuple[Tensor, Tensor]:
        """Polynomials in theta (*, 2) as (*, 6), and s (*)."""
        s, electron = self._setting(design)
        return couplings(theta, electron, self.positron_polarisation), s

    def _slopes(self, theta: Tensor, design: Tensor | None) -> Tensor:
        """Gradients (*, 2, 6) of the polynomials."""
        return coupling_slopes(theta, self._setting(design)[1], self.positron_polarisation)

    def _setting(self, design: Tensor | None) -> tuple[Tensor, Tensor]:
        """s in GeV^2 and the electrons' polarisation, (*) each."""
        columns = list(torch.tensor([self.sqrt_s, self.polarisation], dtype=torch.float64))
        if design is not None:
            if design.shape[-1:] != (len(self.designs),):
                raise InputError(f"design has shape {tuple(design.shape)}, expected (*, {len(self.designs)}).")
            for k, axis in enumerate(self.designs):
                columns[k] = design[..., k].to(torch.float64)
                _check(axis, columns[k], "design")
        if bool((columns[1] * self.positron_polarisation >= 1).any()):
            raise InputError(
                f"positron_polarisation = {self.positron_polarisation} and the electrons' is the same: such beams do "
                "not annihilate. Bring one of the two nearer to 0."
            )
        return columns[0] ** 2, columns[1]

    def _energy(self, s: Tensor) -> Tensor:
        """Propagators (*, 3) at s (*), averaged over the radiation."""
        return mean_propagators(s) if self.radiation else propagators(s)

    def _fiducial(self, s: Tensor) -> Tensor:
        """The six numbers (*, 6) of the fiducial cross-section at s (*)."""
        return outer(self._accepted, self._energy(s))

    def _read(self, x: Tensor, design: Tensor | None) -> tuple[Tensor, Tensor]:
        """The six numbers (*, 6) of x (*, 2), and the logarithm of what multiplies them, (*)."""
        columns = torch.broadcast_tensors(*x.to(torch.float64).unbind(-1), self._setting(design)[0])
        rows = torch.stack(columns).reshape(3, -1).split(_ROWS, 1)
        numbers, factor = (torch.cat(part) for part in zip(*(self._read_rows(*some) for some in rows), strict=True))
        return numbers.reshape(*columns[0].shape, 6), factor.reshape(columns[0].shape)

    def _read_rows(self, c: Tensor, y: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        angle, at_angle = self._detector.angle_density(c)
        if self.radiation:
            energy, at_energy = self._detector.boost_density(y, s)
        else:
            energy, at_energy = propagators(s), self._detector.rest_density(y)
        return outer(angle, energy), torch.where(at_angle.isneginf(), at_angle, at_angle + at_energy)

    def _events(self, weights: Tensor, s: Tensor, generator: torch.Generator) -> Tensor:
        """Draw (c_obs, y_obs, c, log x), (M, 4), for couplings (M, 6) and s (M,)."""
        weights = weights.unflatten(-1, (2, 3))
        envelope = Envelope(weights.sum(1), s) if self.radiation else None
        events, missing = weights.new_empty((len(s), 4)), torch.arange(len(s))
        while len(missing):
            tries = min(_TRIES, len(s) // len(missing))
            unit = torch.rand((7, len(missing), tries), generator=generator, dtype=torch.float64)
            noise = torch.randn((2, len(missing), tries), generator=generator, dtype=torch.float64)
            log_x, top = torch.full_like(unit[0], -math.inf), torch.zeros_like(unit[0])
            if envelope is not None:
                log_x, top = envelope.draw(missing, unit[0], unit[1])
            energy = propagators(s[missing, None] * -torch.expm1(log_x))
            forward, backward = (energy @ weights[missing].mT).unbind(-1)
            c = 2 * unit[2] ** (1 / 3) - 1
            c = torch.where(unit[3] * (forward + backward) < forward, c, -c)
            y = torch.where(unit[4] < 0.5, 0.5, -0.5) * torch.log1p(-log_x.exp())
            c_obs, y_obs, kept = self._detector.see(c, y, unit[5], noise)
            kept &= unit[6] * top < forward + backward
            found, first = kept.any(1), kept.byte().argmax(1)
            events[missing[found]] = torch.stack([c_obs, y_obs, c, log_x], -1)[found, first[found]]
            missing = missing[~found]
        return events


def _check(axis: Parameter, value: Tensor, where: str) -> None:
    """Raise `InputError` unless all values are in the axis's range, to rounding; NaN is in none."""
    slack = 1e-9 * (axis.high - axis.low)
    wrong = ~((value >= axis.low - slack) & (value <= axis.high + slack))
    if bool(wrong.any()):
        came, unit = float(value[wrong][0]), f" {axis.unit}" * bool(axis.unit)
        raise InputError(
            f"{where}: {axis.name} = {came:g}{unit}, expected {axis.low:g} to {axis.high:g}{unit}. Keep to this range."
        )
