"""The one place that scales: inputs of networks, in float64 before the cast to float32."""

import numpy as np
import torch
from torch import Tensor, nn

_BULK = 6.0
"""Standard units beyond which inputs grow only logarithmically, so that a wild row cannot blow up the network."""


class Scaler(nn.Module):
    """u = (v - median) / half the 16-84% range, per column; identity in the bulk, logarithmic beyond 6 units.

    The location and spread are quantiles, so outliers do not move them; they are kept and applied in float64, so
    1e9 + signal loses nothing. Constant columns become 0 and are listed by `constant`.

    Args:
        width: number of columns W.
    """

    shift: Tensor
    scale: Tensor
    used: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(width, dtype=torch.float64))
        self.register_buffer("scale", torch.ones(width, dtype=torch.float64))
        self.register_buffer("used", torch.ones(width, dtype=torch.bool))

    def adapt(self, values: Tensor) -> None:
        """Learn location and spread from rows (N, W)."""
        rows = values.detach().cpu().to(torch.float64).numpy()
        low, middle, high = np.quantile(rows, [0.16, 0.5, 0.84], axis=0)
        scale = (high - low) / 2
        spread = rows.max(0) - rows.min(0)
        narrow = (scale == 0) & (spread > 0)  # mostly one value: fall back to the mean absolute deviation
        scale = np.where(narrow, np.abs(rows - middle).mean(0), scale)
        self.used.copy_(torch.from_numpy(spread > 0))
        self.shift.copy_(torch.from_numpy(middle))
        self.scale.copy_(torch.from_numpy(np.where(spread > 0, scale, 1.0)))

    @property
    def constant(self) -> list[int]:
        """Columns without any spread."""
        return [int(k) for k in (~self.used).nonzero().flatten()]

    def forward(self, values: Tensor) -> Tensor:
        """Scale values (*, W) to float32 (*, W)."""
        unit = (values.to(torch.float64) - self.shift) / self.scale
        size = unit.abs()
        tail = _BULK + torch.log1p((size - _BULK).clamp(min=0.0))
        unit = torch.where(size > _BULK, unit.sign() * tail, unit)
        return torch.where(self.used, unit, 0.0).to(torch.float32)
