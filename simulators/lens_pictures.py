"""Pictures of lenses and of catalogues of subhalos."""

from typing import Any

import torch

from sbi_core.simulations import Simulations

_ROWS, _COLUMNS, _GAP = 2, 4, 0.06
_CATALOGUES = 60


def draw_images(axes: Any, simulations: Simulations) -> None:
    """Draw eight images x (N, P, P), logarithms of counts above the sky, by the number of subhalos, in the corner."""
    some = simulations[: _ROWS * _COLUMNS]
    theta = some.theta if some.z is None else torch.cat([some.theta, some.z[:, :1]], 1)
    order = theta[:, -1].argsort()
    images = some.x.flatten(1)
    sky = images.quantile(0.25, dim=1, keepdim=True)
    bright = torch.log1p(((images - sky) / (4 * sky.sqrt())).clamp(min=0)).reshape(some.x.shape)
    for place, number in enumerate(order.tolist()):
        left, top = place % _COLUMNS * (1 + _GAP), place // _COLUMNS * (1 + 3 * _GAP)
        axes.imshow(
            bright[number].numpy(),
            extent=(left, left + 1, -top - 1, -top),
            origin="lower",
            cmap="inferno",
            vmin=0,
            vmax=float(bright.max()),
            interpolation="nearest",
        )
        f_sub, beta, *n = theta[number].tolist()
        label = rf"$f_\mathrm{{sub}}$ = {f_sub:.3f}, $\beta$ = {beta:.2f}"
        axes.text(left + 0.5, -top + 0.02, label, ha="center", va="bottom", fontsize=7)
        if n:
            axes.text(left + 0.97, -top - 0.98, f"{n[0]:.0f}", ha="right", va="bottom", fontsize=7, color="white")
    tall = -(-len(some) // _COLUMNS)
    axes.set(xlim=(0, _COLUMNS * (1 + _GAP) - _GAP), ylim=(-tall * (1 + 3 * _GAP) + 3 * _GAP, 0.12), aspect="equal")
    axes.set_axis_off()
    if some.z is not None:
        axes.set_title("counts above the sky, logarithmic; in the corner the number of subhalos", fontsize=8)


def draw_catalogues(axes: Any, simulations: Simulations) -> None:
    """Draw how many subhalos were found above each mass in 60 catalogues x (N, n_max), coloured by f_sub."""
    from matplotlib import cm, colors

    some = simulations[:_CATALOGUES]
    share = some.theta[:, 0].log10()
    low, high = float(share.min()), float(share.max())
    colour = cm.ScalarMappable(colors.Normalize(low, max(high, low + 0.01)), "viridis")
    for x, shade in zip(some.x, colour.to_rgba(share.numpy()), strict=True):
        masses = 10 ** x[x > 0].sort(descending=True).values
        axes.step(masses.numpy(), range(1, len(masses) + 1), where="post", color=shade, lw=0.9, alpha=0.8)
    axes.set(xscale="log", yscale="log", xlabel=r"measured mass [$M_\odot$]", ylabel="subhalos found above it")
    axes.figure.colorbar(colour, ax=axes, label=r"$\log_{10} f_\mathrm{sub}$", pad=0.02, shrink=0.8)
