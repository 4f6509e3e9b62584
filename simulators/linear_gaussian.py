"""The linear-Gaussian world with a latent: everything about it is known in closed form."""

import math
from typing import Any, Self

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal

from sbi_core.errors import InputError, MissingGold
from sbi_core.parameters import Parameter
from sbi_core.simulator import Simulator


class LinearGaussian(Simulator):
    """z ~ N(A theta, latent_std^2 I), x ~ N(z, noise_std^2 I), theta ~ N(0, prior_std^2 I).

    With S = latent_std^2 + noise_std^2 and P rows of A: joint score A^T (z - A theta) / latent_std^2, score
    A^T (x - A theta) / S, Fisher information A^T A / S. Without noise x is z, and the two scores are the same.

    Args:
        dim: number of parameters D, for A = 1.
        matrix: the design matrix A (P, D), instead of dim.
        latent_std: spread of the latent.
        noise_std: spread of the noise; may be 0.
        prior_std: spread of the prior.

    Example:
        >>> world = LinearGaussian(matrix=[[1.0, 0.0], [1.0, 1.0]])
        >>> world.fisher_information()
        tensor([[0.4000, 0.2000],
                [0.2000, 0.2000]], dtype=torch.float64)
    """

    def __init__(
        self,
        dim: int | None = None,
        *,
        matrix: Any = None,
        latent_std: float = 2.0,
        noise_std: float = 1.0,
        prior_std: float = 1.0,
    ) -> None:
        if dim is not None and matrix is not None:
            raise InputError("give dim or matrix, not both.")
        self.matrix = torch.eye(dim or 1).double() if matrix is None else torch.as_tensor(matrix).double()
        if self.matrix.ndim != 2 or min(latent_std, prior_std) <= 0 or noise_std < 0:
            raise InputError(
                f"matrix has shape {tuple(self.matrix.shape)}, expected (P, D); the standard deviations "
                f"latent {latent_std} and prior {prior_std} must be positive, noise {noise_std} at least 0."
            )
        self.latent_std = latent_std
        self.noise_std = noise_std
        self.prior_std = prior_std
        self.x_shape = (self.matrix.shape[0],)
        end = 10 * prior_std
        self.parameters = tuple(
            Parameter(f"theta_{k + 1}", -end, end, latex=rf"\theta_{{{k + 1}}}") for k in range(self.matrix.shape[1])
        )

    @classmethod
    def benchmark(cls) -> Self:
        """The benchmark task "Gaussian linear": x ~ N(theta, 0.1 I), theta ~ N(0, 0.1 I), D = 10 (arXiv:2101.04653).

        The task has no latent. Here the whole spread is the latent's and x is z, so the joint score is the score.
        """
        return cls(10, latent_std=math.sqrt(0.1), noise_std=0.0, prior_std=math.sqrt(0.1))

    @property
    def prior(self) -> Distribution:
        """N(0, prior_std^2 I), event shape (D,)."""
        scale = torch.full((len(self.parameters),), self.prior_std, dtype=torch.float64)
        return Independent(Normal(torch.zeros_like(scale), scale), 1)

    @property
    def variance(self) -> float:
        """Variance of each component of x at fixed theta."""
        return self.latent_std**2 + self.noise_std**2

    def sample(self, theta: Tensor, design: Tensor | None, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw x (M, P) and z (M, P) at theta (M, D)."""
        shape = (len(theta), len(self.matrix))
        z = theta @ self.matrix.T + self.latent_std * torch.randn(shape, generator=generator, dtype=torch.float64)
        return z + self.noise_std * torch.randn(shape, generator=generator, dtype=torch.float64), z

    def log_joint(self, theta: Tensor, x: Tensor, z: Tensor | None, design: Tensor | None) -> Tensor:
        """log p(z | theta), theta (M, D), z (M, P), as (M,); p(x | z) does not know theta."""
        if z is None:
            raise MissingGold(f"simulator '{self.name}': the simulations were stored without z.")
        return -((z - theta @ self.matrix.T) ** 2).sum(-1) / (2 * self.latent_std**2)

    def log_likelihood(self, theta: Tensor, x: Tensor, design: Tensor | None = None) -> Tensor:
        """Exact log p(x | theta), theta (*, D), x (*, P), broadcasting to (*)."""
        residual = x.to(torch.float64) - theta.to(torch.float64) @ self.matrix.T
        width = self.variance
        return -0.5 * (residual**2 / width + math.log(2 * math.pi * width)).sum(-1)

    def score(self, theta: Tensor, x: Tensor, design: Tensor | None = None) -> Tensor:
        """Exact grad_theta log p(x | theta), theta (*, D), x (*, P), as (*, D)."""
        return (x.to(torch.float64) - theta.to(torch.float64) @ self.matrix.T) @ self.matrix / self.variance

    def fisher_information(self, theta: Tensor | None = None, *, latent: bool = False) -> Tensor:
        """A^T A / S, (D, D), the same at every theta (*, D); with `latent` that of the joint likelihood."""
        return self.matrix.T @ self.matrix / (self.latent_std**2 if latent else self.variance)

    def posterior(self, x: Tensor) -> MultivariateNormal:
        """Exact posterior for x (*, P); several rows of x are independent draws at one theta if x is (n, P).

        Precision n A^T A / S + 1 / prior_std^2; event shape (D,).
        """
        rows = x.to(torch.float64).reshape(-1, len(self.matrix))
        precision = len(rows) * self.fisher_information() + torch.eye(len(self.parameters)) / self.prior_std**2
        mean = torch.linalg.solve(precision, self.matrix.T @ rows.sum(0) / self.variance)
        return MultivariateNormal(mean, precision_matrix=precision)

    def information_gain(self, n: int = 1) -> Tensor:
        """Expected information gain of n draws in nats, (): half the log determinant of 1 + n prior_std^2 A^T A / S."""
        ratio = n * self.prior_std**2 * self.fisher_information()
        return 0.5 * torch.linalg.slogdet(torch.eye(len(self.parameters)) + ratio).logabsdet
