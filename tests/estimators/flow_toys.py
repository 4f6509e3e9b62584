"""Flows and a small world that several tests share."""

import copy
from functools import cache

import torch
from torch.distributions import Normal

from sbi_core.estimators.flows import ConditionalFlow
from sbi_core.seeding import seeded

SMALL = {"transforms": 2, "hidden": 16}
SIZES = {"spline_coupling": 3.0}  # nflows divides what the spline coupling reads by the root of the width


def shaken(kind, width, context, *, size=0.1, seed=0, **options):
    """An untrained flow, its last layers moved well away from the identity."""
    with seeded(seed):
        flow = ConditionalFlow(width, context, kind=kind, **(SMALL | options))
        with torch.no_grad():
            for name, weight in flow.named_parameters():
                if "final_layer" in name:
                    weight += size * SIZES.get(kind, 1.0) * torch.randn_like(weight)
    return flow


def world(rows, width, seed):
    """v_1 = sin(2 c) + 0.3 skewed noise, v_2 = v_1^2 - c + 0.2 noise, c uniform in [-1, 1]."""
    with seeded(seed):
        context, noise = 2 * torch.rand(rows, 1) - 1, torch.randn(rows, 2)
    first = torch.sin(2 * context) + 0.3 * (noise[:, :1] + 0.3 * (noise[:, :1] ** 2 - 1))
    return torch.cat([first, first**2 - context + 0.2 * noise[:, 1:]], 1)[:, :width], context


@cache
def trained(kind, width):
    """A flow after 120 steps on the world."""
    value, context = world(4000, width, 1)
    with seeded(2):
        flow = ConditionalFlow(width, 1, kind=kind, **SMALL)
        adam = torch.optim.Adam(flow.parameters(), 1e-2)
        slower = torch.optim.lr_scheduler.LinearLR(adam, 1.0, 0.01, 120)
        for _ in range(120):
            some = torch.randint(len(value), (128,))
            adam.zero_grad()
            (-flow.log_prob(value[some], context[some]).mean()).backward()
            adam.step()
            slower.step()
    return flow


def grid(width):
    """Points of a tensor grid, dense in the bulk, and their weights for the trapezoid rule."""
    u = torch.linspace(-1, 1, 5001 if width == 1 else 241, dtype=torch.float64)
    axis = 4 * u + 8 * u**7
    steps = axis.diff()
    weight = (torch.cat([steps, steps[:1] * 0]) + torch.cat([steps[:1] * 0, steps])) / 2
    if width == 1:
        return axis[:, None], weight
    return torch.cartesian_prod(axis, axis), (weight[:, None] * weight).flatten()


def density(flow, at, points, *, slope=True):
    """p(points | context), (M,), in float64; without the slope of the chain it is no density."""
    context = torch.full((len(points), flow.context), at, dtype=torch.float64)
    exact = copy.deepcopy(flow).double()
    with torch.no_grad():
        if slope:
            return exact.log_prob(points, context).exp()
        return Normal(0, 1).log_prob(exact.transform(points, context)[0]).sum(-1).exp()
