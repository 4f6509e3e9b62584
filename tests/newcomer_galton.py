"""The generalised Galton board as somebody new to the library writes it: with gold, in under 40 lines."""

import math

import torch

from sbi_core import Parameter, Simulator


class NewcomerBoard(Simulator):
    """20 rows of 31 nails; z is the path."""

    parameters = (Parameter("theta", -1.0, 0.0),)
    categories = 32

    def left(self, theta, row, position):
        """Probability of going left, (M,)."""
        tilt = math.sin(math.pi * row / 19)
        return (1 - tilt) / 2 + tilt * torch.sigmoid(10 * theta[:, 0] * (2 * position / 30 - 1))

    def sample(self, theta, design, generator):
        path = [torch.full((len(theta),), 15.0)]
        for row in range(20):
            right = torch.rand(len(theta), generator=generator) >= self.left(theta, row, path[-1])
            path.append(path[-1] + right - row % 2)
        return path[-1][:, None], torch.stack(path[1:], 1)

    def log_joint(self, theta, x, z, design):
        before = torch.cat([torch.full_like(z[:, :1], 15), z[:, :-1]], 1)
        total = torch.zeros(len(z), dtype=torch.float64)
        for row in range(20):
            left = self.left(theta, row, before[:, row])
            total = total + torch.where(z[:, row] == before[:, row] - row % 2, left, 1 - left).log()
        return total
