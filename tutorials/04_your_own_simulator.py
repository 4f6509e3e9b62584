# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Your own simulator, four ways
#
# You have a program that makes data from parameters. What must you tell sbi-core about it? At the least, nothing: a
# function that returns $x$ will do. But a program knows more while it runs than it returns, and each thing you tell
# saves simulations. This notebook wraps one small experiment four ways, and counts what each costs and what it gains:
#
# 1. a function that returns $x$,
# 2. a function that returns $x$ and its gold,
# 3. a subclass that keeps its latents and states $\log p(x, z \mid \theta)$,
# 4. a Pyro program.
#
# The experiment is small enough to know the exact answer, so that "gains" is a number.

# %%
import os
import time
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from scipy.stats import exponnorm, norm

from sbi_core import (
    FunctionSimulator,
    Parameter,
    SbiWarning,
    Simulator,
    check_gold,
    infer,
    joint_score,
    plots,
    simulate,
)
from sbi_core.estimators import RatioEstimator, alices, fit, nre, rascal
from sbi_core.simulators import PyroSimulator

FAST = "SBI_FAST" in os.environ  # the tests run this notebook with fewer events and shorter trainings
plt.rcParams.update(plots.STYLE)

# %% [markdown]
# ## The experiment
#
# Muons stop in a block of scintillator and decay after an exponential time of mean $\tau$. A share $1 - s$ of what is
# recorded are accidental coincidences instead, with a mean waiting time of 10 µs. The time is measured with a
# resolution of 0.3 µs, and a decay leaves more light than an accident, though the two overlap. We want $\tau$ and $s$.
#
# An event is thus: signal or not; a true time $t$; a measured time and a measured energy, $x$. The first two are
# latent: nobody sees them. Here one can integrate over them,
#
# $$p(x \mid \tau, s) = s \, E(x_t; \tau) \, N(x_E; 37, 12) + (1 - s) \, E(x_t; 10) \, N(x_E; 18, 10),$$
#
# $E$ being an exponential smeared by a Gaussian. In your program one cannot; we use it only to keep score.

# %%
PARAMETERS = (
    Parameter("tau", 1.0, 4.0, unit="µs", latex=r"\tau"),
    Parameter("share", 0.2, 0.9, latex="s"),
)
ACCIDENTAL, RESOLUTION = 10.0, 0.3  # µs
ENERGY = {"signal": (37.0, 12.0), "accident": (18.0, 10.0)}  # mean and sd in MeV


def smeared(time, mean):
    """Density of an exponential of that mean, measured with the resolution."""
    return torch.from_numpy(exponnorm.pdf(time.numpy(), np.asarray(mean) / RESOLUTION, 0, RESOLUTION))


def exact(theta, x):
    """log p(x | theta), theta (*, 2), x (*, 2)."""
    tau, share, x = theta[..., 0], theta[..., 1], x.double()
    signal = smeared(x[..., 0], tau) * norm.pdf(x[..., 1], *ENERGY["signal"])
    accident = smeared(x[..., 0], ACCIDENTAL) * norm.pdf(x[..., 1], *ENERGY["accident"])
    return torch.log(share * signal + (1 - share) * accident)


# %% [markdown]
# ## 1. A function
#
# theta is an array (M, 2), one row for each event; `rng` is the only source of random numbers, so that row 12,345 is
# the same tomorrow, on another machine, with four workers.


# %%
def experiment(theta, rng):
    tau, share = theta.T
    signal = rng.random(len(theta)) < share
    t = rng.exponential(np.where(signal, tau, ACCIDENTAL))
    mean, sd = np.where(signal[:, None], ENERGY["signal"], ENERGY["accident"]).T
    return np.stack([t + RESOLUTION * rng.standard_normal(len(t)), rng.normal(mean, sd)], 1)


black_box = FunctionSimulator(experiment, PARAMETERS)

# %%
one_theta = torch.tensor([2.2, 0.6])
events = simulate(black_box, 4000, proposal=one_theta, seed=1, progress=False)

figure, axes = plt.subplots(1, 2, figsize=(9.0, 3.4))
for k, (ax, label) in enumerate(zip(axes, ("measured time [µs]", "measured energy [MeV]"), strict=True)):
    ax.hist(events.x[:, k], 120 if k == 0 else 50, density=True, color=plots.GREY, alpha=0.45)
    ax.set(xlabel=label, yticks=[])
grid = torch.stack(torch.meshgrid(torch.linspace(-2, 40, 400), torch.linspace(-25, 85, 300), indexing="ij"), -1)
density = exact(one_theta.double(), grid).exp()
axes[0].plot(grid[:, 0, 0], density.sum(1) * 110 / 299, color=plots.BLUE, label=r"exact $p(x \mid \theta)$")
axes[1].plot(grid[0, :, 1], density.sum(0) * 42 / 399, color=plots.BLUE)
axes[0].set(xlim=(-2, 30))
axes[0].legend()
plt.show()

# %% [markdown]
# ## 2. A function that returns its gold
#
# While it runs, the program knows the latents, and so the joint likelihood of all that happened,
#
# $$\log p(x, z \mid \theta) = \begin{cases} \log s - \log\tau - t/\tau & \text{signal} \\ \log(1 - s) &
# \text{accident} \end{cases} \quad + \text{ terms without } \theta.$$
#
# Its gradient is the *joint score*; its difference between the event's own $\theta$ and another, $\theta'$, the *joint
# log ratio*. With `contrasts=4` the function receives four other thetas for each event, and returns both. They are
# about $z$, not about $x$: no integral was done. That their averages over $z$ are the intractable score and ratio is
# what all methods with gold live on ([arXiv:1805.12244](https://arxiv.org/abs/1805.12244)).


# %%
def log_joint(theta, signal, t):
    tau, share = theta[..., 0], theta[..., 1]
    return np.where(signal, np.log(share / tau) - t / tau, np.log1p(-share))


def experiment_with_gold(theta, theta_alt, rng):
    tau, share = theta.T
    signal = rng.random(len(theta)) < share
    t = rng.exponential(np.where(signal, tau, ACCIDENTAL))
    mean, sd = np.where(signal[:, None], ENERGY["signal"], ENERGY["accident"]).T
    x = np.stack([t + RESOLUTION * rng.standard_normal(len(t)), rng.normal(mean, sd)], 1)
    score = np.where(signal, [(t / tau - 1) / tau, 1 / share], [0 * t, -1 / (1 - share)]).T
    here, there = log_joint(theta, signal, t), log_joint(theta_alt, signal[:, None], t[:, None])
    return {"x": x, "joint_score": score, "joint_log_ratio": here[:, None] - there}


golden = FunctionSimulator(experiment_with_gold, PARAMETERS, contrasts=4)

# %% [markdown]
# ## 3. A subclass
#
# Two numbers, the class of the event and its true time, are enough to write $\log p(x, z \mid \theta)$ down *later*.
# Kept as `z`, they give joint ratios and scores at any theta, and contrasts that are drawn anew in every step of
# training. No derivative is written by hand: `log_joint` is differentiated.


# %%
class Decays(Simulator):
    parameters = PARAMETERS

    def sample(self, theta, design, generator):
        tau, share = theta.T
        like = {"generator": generator, "dtype": torch.float64}
        signal = torch.rand(len(theta), **like) < share
        t = -torch.where(signal, tau, ACCIDENTAL) * torch.log1p(-torch.rand(len(theta), **like))
        mean, sd = torch.where(signal[:, None], torch.tensor(ENERGY["signal"]), torch.tensor(ENERGY["accident"])).T
        noise = torch.randn(2, len(theta), **like)
        return torch.stack([t + RESOLUTION * noise[0], mean + sd * noise[1]], 1), torch.stack([signal, t], 1)

    def log_joint(self, theta, x, z, design):
        tau, share = theta.T
        signal, t = z.T
        return torch.where(signal == 1, torch.log(share / tau) - t / tau, torch.log1p(-share))


decays = Decays()

# %% [markdown]
# ## 4. A Pyro program
#
# Every `pyro.sample` knows its density, so the program *is* its own `log_joint`. `PyroSimulator` records the latents
# and runs the program again at another theta.


# %%
def program(theta):
    tau, share = theta.T
    with pyro.plate("events", len(theta)):
        signal = pyro.sample("signal", dist.Bernoulli(share)) == 1
        t = pyro.sample("t", dist.Exponential(torch.where(signal, 1 / tau, 1 / ACCIDENTAL)))
        pyro.sample("time", dist.Normal(t, RESOLUTION))
        mean, sd = torch.where(signal[:, None], torch.tensor(ENERGY["signal"]), torch.tensor(ENERGY["accident"])).T
        pyro.sample("energy", dist.Normal(mean, sd))


in_pyro = PyroSimulator(program, PARAMETERS, observed=("time", "energy"))

# %% [markdown]
# Its latents are the same two numbers, and its gold is the subclass's to the last digits:

# %%
rows = simulate(in_pyro, 2000, seed=1, progress=False)
by_program, by_hand = (joint_score(world, rows) for world in (in_pyro, decays))
assert torch.allclose(by_program, by_hand, rtol=1e-10)
by_program[:3]

# %% [markdown]
# ## Is the gold true?
#
# A derivative written by hand is soon wrong, and a wrong score does not crash: it biases. `check_gold` holds gold
# against the simulations that it belongs to. A factor forgotten in one line is found:


# %%
def careless(theta, theta_alt, rng):
    made = experiment_with_gold(theta, theta_alt, rng)
    made["joint_score"][:, 0] *= theta[:, 0]  # as if it were the score of log(tau)
    return made


for world in (golden, decays, in_pyro):
    check_gold(world, simulate(world, 10_000, seed=2, progress=False)).raise_if_failed()

wrong = FunctionSimulator(careless, PARAMETERS, contrasts=4)
verdict = check_gold(wrong, simulate(wrong, 10_000, seed=2, progress=False))
assert not verdict.passed and "tau" in verdict.verdict
print(verdict.verdict)

# %% [markdown]
# ## What it costs
#
# Seconds of CPU time for 100,000 events, and lines of code beyond the plain function.

# %%
WORLDS = {"function": black_box, "with gold": golden, "subclass": decays, "Pyro": in_pyro}
N = 10_000 if FAST else 100_000
seconds = {}
for name, world in WORLDS.items():
    simulate(world, 1000, seed=3, progress=False)
    began = time.process_time()
    simulate(world, N, seed=3, progress=False)
    seconds[name] = (time.process_time() - began) * 100_000 / N
for name, value in seconds.items():
    print(f"{name:10s} {value:6.2f} s for 100,000 events, {value / seconds['function']:4.1f} times the plain function")

# %% [markdown]
# For a simulator this cheap gold is not free; for one that takes a second per event it would be. What counts is how
# many events are needed.
#
# ## What it gains
#
# We train $f(\theta, x)$ on 300, 1000 and 3000 events, and measure the mean squared error of
# $\log r = f(\theta', x) - f(\theta, x)$ on fresh events and pairs of thetas. The plain function leaves `nre`, which
# reads $x$ alone. A function that returned its gold can be learned from by `rascal`, with the contrasts that were
# stored. What keeps its latents takes `alices`, with fresh contrasts in each step.

# %%
fresh = simulate(decays, 2000, seed=90, progress=False)
other = simulate(decays, 2000, seed=91, progress=False).theta
truth = exact(other, fresh.x) - exact(fresh.theta, fresh.x)
LOSSES = {"function": nre, "with gold": rascal, "subclass": alices, "Pyro": alices}
SIZES = (300,) if FAST else (300, 1000, 3000)
SEEDS = {"function": 3, "with gold": 3, "subclass": 3, "Pyro": 1}


def trained(name, n, seed):
    data = simulate(WORLDS[name], n, seed=100 + seed, progress=False)
    options = {"max_epochs": 3} if FAST else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SbiWarning)
        run = fit(
            RatioEstimator.from_data(data),
            LOSSES[name],
            data,
            simulator=WORLDS[name],
            seed=seed,
            progress=False,
            **options,
        )
    return run.estimator


def error(estimator):
    with torch.no_grad():
        learned = estimator.log_likelihood(other, fresh.x) - estimator.log_likelihood(fresh.theta, fresh.x)
    return float((learned - truth).square().mean())


errors = {
    name: np.array([[error(trained(name, n, seed)) for seed in range(1 if FAST else SEEDS[name])] for n in SIZES])
    for name in WORLDS
}

# %% tags=["figure:own_simulator"]
COLOURS = dict(zip(WORLDS, (plots.GREY, plots.ORANGE, plots.BLUE, plots.GREEN), strict=True))
figure, axes = plt.subplots(figsize=(6.4, 4.0))
for name, found in errors.items():
    axes.plot(
        SIZES,
        found.mean(1),
        "o-" if name != "Pyro" else "D--",
        color=COLOURS[name],
        label=f"{name}: {LOSSES[name].__name__}",
    )
    axes.fill_between(SIZES, found.min(1), found.max(1), color=COLOURS[name], alpha=0.15, lw=0)
axes.set(xscale="log", yscale="log", xlabel="simulated events", ylabel=r"mean squared error of $\log r$")
axes.set_xticks(SIZES, [f"{n:,}" for n in SIZES])
axes.minorticks_off()
axes.legend()
plt.show()

# %%
for n, *found in zip(SIZES, *errors.values(), strict=True):
    print(
        f"{n:5d} events: " + ", ".join(f"{name} {value.mean():.4f}" for name, value in zip(errors, found, strict=True))
    )
if not FAST:
    most = SIZES.index(3000)
    assert errors["with gold"][most].mean() < errors["function"][most].mean() / 2
    assert errors["subclass"][most].mean() < errors["with gold"][most].mean()
    assert errors["subclass"][0].mean() < errors["function"][most].mean() * 1.5, "a tenth of the events"

# %% [markdown]
# ## What it means for the answer
#
# 150 events of a true $\tau = 2.2$ µs, $s = 0.6$, and what 1000 simulations make of them: without gold, and with.

# %%
observed = simulate(decays, 150, proposal=one_theta, seed=7, progress=False).x
axis = [torch.linspace(p.low, p.high, 121).double() for p in PARAMETERS]
lattice = torch.stack(torch.meshgrid(*axis, indexing="ij"), -1)
total = sum(exact(lattice, x.expand(121, 121, 2)) for x in observed)
weight = torch.exp(total - total.max())
mean = (weight[..., None] * lattice).sum((0, 1)) / weight.sum()

n = 300 if FAST else 1000
with warnings.catch_warnings():
    warnings.simplefilter("ignore", SbiWarning)
    posteriors = {
        name: infer(trained(name, n, 0), decays.prior, observed, iid=True, seed=1, time_limit=600)
        for name in ("function", "subclass")
    }

figure, axes = plt.subplots(figsize=(5.6, 4.2))
levels = [float(v) for v in weight.max() * torch.exp(torch.tensor([-3.0, -1.15]))]  # 95 and 68% of a Gaussian
axes.contourf(axis[0], axis[1], weight.T, [*levels, float(weight.max())], colors=["0.9", "0.8"])
for name, posterior in posteriors.items():
    density = posterior.log_prob(lattice).exp()
    cut = [float(v) for v in density.max() * torch.exp(torch.tensor([-3.0, -1.15]))]
    axes.contour(axis[0], axis[1], density.T, cut, colors=[COLOURS[name]])
    axes.plot([], color=COLOURS[name], label=f"{name}, {n} simulations")
axes.plot([], color="0.8", lw=6, label="exact")
axes.plot(*one_theta, "+", color="k", ms=10, label="truth")
axes.set(xlabel=PARAMETERS[0].label, ylabel=PARAMETERS[1].label, xlim=(1, 4), ylim=(0.2, 0.9))
axes.legend(loc="lower right")
plt.show()

# %%
sd = ((weight[..., None] * (lattice - mean) ** 2).sum((0, 1)) / weight.sum()).sqrt()
off = {name: ((posterior.mean - mean) / sd).abs().max().item() for name, posterior in posteriors.items()}
print("largest distance of the posterior mean from the exact one, in its standard deviations:")
for name, value in off.items():
    print(f"{name:10s} {value:.2f}")

# %% [markdown]
# ## Which one?
#
# Take the plain function if the program is cheap or its inside is closed to you. Return gold if the latents are many
# and known only while the program runs. Keep a short $z$ and write `log_joint` whenever you can: it is the fewest
# lines, needs no derivative, and learns from the fewest events. If you think in Pyro, you have it already. A program in
# another language goes through `CommandSimulator`, events with weights through `WeightedEvents`; the
# [table of interfaces](guide/which_interface.md) has them all.
