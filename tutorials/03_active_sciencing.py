# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Active sciencing: which energy next?
#
# Electrons and positrons collide, muon pairs come out, and their angles tell the weak mixing angle. The machine can run
# at any energy from 60 to 130 GeV. At which one should it run? And once that run is analysed, at which one next?
#
# Choose the experiment that teaches most, run it, update, repeat: K. Cranmer, L. Heinrich, T. Head and G. Louppe called
# this *active sciencing* and showed it for this very measurement
# ([cranmer/active_sciencing](https://github.com/cranmer/active_sciencing)); its place among the methods of
# simulation-based inference is described in [arXiv:1911.01429](https://arxiv.org/abs/1911.01429). What an experiment
# is expected to teach is the *expected information gain* of Lindley (Ann. Math. Statist. 27 (1956) 986). The idea is
# theirs; world and code here are our own.
#
# The world is small enough that its likelihood is known exactly, so every claim can be held against the truth: each is
# followed by an `assert`, whose tolerance is a number of measured standard errors.

# %%
import os
import time

import matplotlib.pyplot as plt
import torch

from sbi_core import Events, Parameter, UniformPrior, check_gold, infer, plots, simulate
from sbi_core.design import Hidden, Loop, bracket, learn, propose, run_loop
from sbi_core.results import total_variation
from sbi_core.simulators import MuonPairs

FAST = "SBI_FAST" in os.environ  # the tests run this notebook with fewer events, rounds and thetas
plt.rcParams.update(plots.STYLE)


def at(*numbers):
    """Numbers as float64."""
    return torch.tensor(numbers, dtype=torch.float64)


STANDARD = at(0.23153, 1.0)  # what the Standard Model says
ENERGY = r"$\sqrt{s}$ [GeV]"

# %% [markdown]
# ## The physics
#
# A photon or a $Z$ boson makes the pair. At tree level the cosine $c$ of the muon's angle follows
#
# $$\frac{d\sigma}{dc} \propto \frac1s\left[(|A_{LL}|^2 + |A_{RR}|^2)(1 + c)^2 + 2\,|A_{LR}|^2 (1 - c)^2\right], \qquad
# A_{ij} = 1 + \frac{G_F}{G_F^0}\,\chi(s)\,g_i\,g_j,$$
#
# with $g_L = \sin^2\theta_W - \frac12$, $g_R = \sin^2\theta_W$, and $\chi(s)$ the propagator of the $Z$ over that of
# the photon. Two parameters are unknown: $\theta = (\sin^2\theta_W,\ G_F/G_F^0)$, the second being the Fermi constant
# over its accepted value. The prior is uniform.
#
# Angles see the *forward-backward asymmetry* $A_\mathrm{FB}$. It is large below and above the $Z$, where photon and $Z$
# interfere, and there it depends on the strength of the $Z$, hence on $G_F$ (the grey band: from half to one and a half
# times its accepted value). $\sin^2\theta_W$ changes it by little, and mostly below the $Z$ (the inset); at the $Z$
# it is the only thing that does. So energies differ not only in how much they teach, but in *what*. The third picture
# says it in numbers: the Fisher information of 1000 angles.

# %%
bare = MuonPairs(radiation=False)
prior = bare.prior
tree = MuonPairs(radiation=False, flips=False, smearing=0.0, window=None)
scan = torch.linspace(60, 130, 281, dtype=torch.float64)[:, None]

figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12.6, 3.7))
inset = left.inset_axes((0.56, 0.12, 0.42, 0.33))
strengths = [at(STANDARD[0], g) for g in torch.linspace(0.5, 1.5, 21)]
for axes, function in ((left, tree.forward_backward_asymmetry), (middle, tree.rate)):
    band = torch.stack([function(theta, scan) for theta in strengths])
    axes.fill_between(scan[:, 0], band.min(0).values, band.max(0).values, color=plots.GREY, alpha=0.3, lw=0)
for s2w, colour in ((0.21, plots.VERMILION), (0.23153, "black"), (0.25, plots.BLUE)):
    theta = at(s2w, 1.0)
    asymmetry = tree.forward_backward_asymmetry(theta, scan)
    left.plot(scan, asymmetry, color=colour, lw=1.3)
    inset.plot(scan, asymmetry - tree.forward_backward_asymmetry(STANDARD, scan), color=colour, lw=1.3)
    middle.plot(scan, tree.rate(theta, scan), color=colour, lw=1.3, label=f"{s2w:.2f}")
inset.set_title(r"$\Delta A_\mathrm{FB}$", fontsize=9)
inset.tick_params(labelsize=7.5)
left.set(xlabel=ENERGY, ylabel=r"$A_\mathrm{FB}$", title="asymmetry", ylim=(-0.85, 0.85))
middle.set(xlabel=ENERGY, ylabel=r"$\sigma$ [pb]", title="cross-section", yscale="log")
middle.legend(title=r"$\sin^2\theta_W$", loc="upper right")
fisher = bare.fisher_information(STANDARD, scan)
for k, (axis, colour) in enumerate(zip(bare.parameters, (plots.GREEN, plots.ORANGE), strict=True)):
    spread = (axis.high - axis.low) / 12**0.5
    right.plot(scan, 1000 * fisher[:, k, k] * spread**2, color=colour, label=axis.label)
right.set(xlabel=ENERGY, ylabel="information / prior information", yscale="log", ylim=(3e-3, 200))
right.set_title("Fisher information of 1000 angles")
right.legend(loc="upper center", ncols=2)
plt.show()

# %% [markdown]
# Published values of the asymmetry and the cross-section at the $Z$:

# %%
peak = at(91.1876)
assert abs(float(tree.rate(STANDARD, peak)) - 1984) < 0.5
assert abs(float(tree.forward_backward_asymmetry(STANDARD, peak)) - 0.01610) < 5e-6
assert abs(float(tree.forward_backward_asymmetry(STANDARD, at(80.0))) + 0.7267) < 5e-5

# %% [markdown]
# ## The simulator and its gold
#
# `MuonPairs` simulates what a detector would see. A beam may radiate a photon before it annihilates, so that less
# energy is left and the pair is boosted along the beam, to the rapidity $y$; a muon's charge is mistaken now and then;
# angle and boost are smeared; and muons near the beam pipe are lost. One event is $x = (c, y)$, as observed. Here are
# 3000 events of the Standard Model at each of three energies. The lines are exact: this detector is simple enough.

# %%
world = MuonPairs()
three = at(82, 91.1876, 104)[:, None]
shown = simulate(world, 9000, proposal=STANDARD, design=three.repeat(3000, 1), seed=1, progress=False)
figure, (left, right) = plt.subplots(1, 2, figsize=(10.4, 3.9))
world.draw(left, shown)
above = shown.x[shown.design[:, 0] == 104]
right.scatter(above[:, 1], above[:, 0], s=3, color=plots.GREEN, alpha=0.6, lw=0)
for side in (-1, 1):  # the pair has the mass of the Z if the beam radiates down to it
    right.axvline(side * float(torch.log(at(104 / 91.1876))), color=plots.GREY, lw=1, ls="--", zorder=0)
right.text(0.145, 1.0, "back to the $Z$", color=plots.GREY, fontsize=9.5)
right.set(xlabel="rapidity $y$ of the pair, observed", ylabel=r"$\cos\theta_\mathrm{obs}$", xlim=(-0.5, 0.5))
right.set(ylim=(-1, 1.15), title="104 GeV, 3000 events")
plt.show()

# %% [markdown]
# The simulator also keeps what happened before the detector, $z$. With it comes gold: the joint score
# $\nabla_\theta \log p(x, z \mid \theta)$ of every event. `check_gold` tests what such a score must satisfy, without
# any likelihood. The saboteur is an author who divides by the cross-section of *all* muon pairs rather than that of
# those that the detector keeps, a mistake that shows when the detector sees one side only:


# %%
class Forgetful(MuonPairs):
    def log_joint(self, theta, x, z, design):
        return super().log_joint(theta, x, z, design) + torch.log(self.rate(theta, design) / self.cross_section(theta))


one_side = {"sqrt_s": 89.0, "window": (0.0, 0.95)}
for author in (MuonPairs, Forgetful):
    rows = simulate(author(**one_side), 10_000, seed=1, progress=False)
    check = check_gold(author(**one_side), rows)
    print(f"{author.__name__}: {check.verdict}")
    assert check.passed == (author is MuonPairs)

# %% [markdown]
# ## One energy is not enough
#
# From here to the last section the beams do not radiate. Then a fixed number of events at one energy tells one number,
# how much goes forward, and two parameters cannot be had from one number: the Fisher matrix has rank one. Along a line
# in the plane of the parameters, here found by bisection, the likelihood does not change at all.

# %%
information = bare.fisher_information(STANDARD, at(84.0))
ratio = torch.linalg.eigvalsh(information / information.diagonal().outer(information.diagonal()).sqrt())
print(f"84 GeV: smallest over largest eigenvalue {float(ratio[0] / ratio[1]):.0e}")
assert abs(ratio[0] / ratio[1]) < 1e-9

both = information + bare.fisher_information(STANDARD, at(99.0))
ratio = torch.linalg.eigvalsh(both / both.diagonal().outer(both.diagonal()).sqrt())
print(f"84 and 99 GeV: {float(ratio[0] / ratio[1]):.2f}")
assert ratio[0] / ratio[1] > 0.01

low, high, target = 0.5, 1.5, bare.forward_backward_asymmetry(STANDARD, at(84.0))
for _ in range(60):
    middle = (low + high) / 2
    low, high = (
        (middle, high) if bare.forward_backward_asymmetry(at(0.21, middle), at(84.0)) < target else (low, middle)
    )
twin = at(0.21, low)

n_events = 200 if FAST else 400
run = Events(bare, n_events)
nature = Hidden(run, STANDARD, seed=3)  # answers with events; its theta is not told
first = at(84.0)
events, _ = nature(first, 0)
one = infer(bare, prior, events, design=first, iid=True)

difference = run.log_likelihood(STANDARD, events, first) - run.log_likelihood(twin, events, first)
print(f"sin2_theta_w = 0.21 and g_f = {low:.4f} instead: log likelihood of the run differs by {float(difference):.0e}")
assert abs(difference) < 1e-9
assert abs(run.log_likelihood(STANDARD, events, at(99.0)) - run.log_likelihood(twin, events, at(99.0))) > 0.1

# %%
s2w, g_f = (torch.linspace(axis.low, axis.high, 241, dtype=torch.float64) for axis in bare.parameters)
plane = torch.stack(torch.meshgrid(s2w, g_f, indexing="ij"), -1)


def same_asymmetry(axes, energy, colour):
    """Draw the line of thetas that have the Standard Model's asymmetry at an energy in GeV."""
    same = float(bare.forward_backward_asymmetry(STANDARD, at(energy)))
    asymmetry = bare.forward_backward_asymmetry(plane, at(energy))
    axes.contour(s2w, g_f, asymmetry.T, levels=[same], colors=colour, linewidths=1.6, linestyles="solid")
    axes.plot([], [], color=colour, lw=1.6, label=f"{energy:.3g} GeV")


figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 4.0), sharex=True, sharey=True)
plots.posterior_2d({"posterior": one}, truth=STANDARD, axes=left)
same_asymmetry(left, 84.0, "black")
left.get_legend().remove()
left.set_title(f"after {n_events} events at 84 GeV")
energies_shown = (70.0, 84.0, 91.1876, 99.0, 120.0)
for energy, colour in zip(energies_shown, (plots.PURPLE, "black", plots.GREEN, plots.BLUE, plots.ORANGE), strict=True):
    same_asymmetry(right, energy, colour)
right.plot(*STANDARD, "x", color=plots.VERMILION, ms=8, mew=2, zorder=5)
right.set(xlabel=bare.parameters[0].label, xlim=(0.2, 0.26), ylim=(0.5, 1.5), title="same asymmetry as at the cross")
right.legend(loc="upper right", fontsize=9)
plt.show()

# %% [markdown]
# The posterior is a band along the line, which ends at the prior only. Lines of other energies cross it, at different
# angles: that is what a second energy is for. Which one?
#
# ## Expected information gain
#
# What a run is expected to teach is how far the posterior is expected to move from what is believed now,
#
# $$I(\theta; x \mid \sqrt s) = E_{x}\left[\mathrm{KL}\big(p(\theta \mid x, \sqrt s)\,\big\|\,p(\theta)\big)\right],$$
#
# in nats, with $\theta$ averaged over the belief and $x$ simulated. `propose` estimates it at every candidate, from the
# same random numbers, and takes the best. We ask before any data, and again with the posterior above as the belief.

# %%
fine = at(62, 74, 84, 91, 99, 112, 128) if FAST else torch.cat([torch.arange(60.0, 131.0, 3), at(91)])
often = {"n": 192 if FAST else 128, "inner": 256}
before = propose(run, bare, prior, fine, seed=1, **often)
after = propose(run, bare, one, fine, seed=1, **often)
print(f"before any data: {before}\nafter 84 GeV:    {after}")

lower, upper = bracket(run, prior, before.design, seed=2, **often)
print(f"its gain is between {lower} and {upper}")
error = (before.gain.error**2 + lower.error**2 + upper.error**2) ** 0.5
assert lower.value - 4 * error < before.gain.value < upper.value + 4 * error


figure, axes = plt.subplots(figsize=(7.4, 3.9))
plots.gain_curve(before, label="before any data", colour=plots.GREY, axes=axes)
plots.gain_curve(after, label=f"after {n_events} events at 84 GeV", axes=axes)
axes.legend(loc="lower right", bbox_to_anchor=(1, 1.0), ncols=2)
plt.show()

# %% [markdown]
# The curve moves. Before any data several energies on both sides of the $Z$ teach about as much, and 84 GeV is among
# them. After a run there, more of the same is worth much less, and the best energy is above the $Z$, where the lines
# cross. Nobody told the computer so; it knows the simulator, and what is believed.


# %%
def value_near(choice, energy):
    """Gain at the candidate nearest to an energy in GeV, and its error."""
    k = int((choice.candidates[:, 0] - energy).abs().argmin())
    return float(choice.values[k]), float(choice.errors[k])


(again, again_error), (had, had_error) = value_near(after, 84), value_near(before, 84)
other = after.gain
assert abs(after.design - first) > 5
z = (other.value - again) / (other.error**2 + again_error**2) ** 0.5
print(f"84 GeV again: {again:.3f} +- {again_error:.3f}; {float(after.design):g} GeV: {other}; {z:.0f} standard errors")
assert z > 4
assert had - again > 4 * (had_error**2 + again_error**2) ** 0.5
best, best_error = max((g.value, g.error) for g in before.gains)
assert had / best > 0.9 - 4 * (had_error**2 + best_error**2) ** 0.5 / best

# %% [markdown]
# ## The loop
#
# `run_loop` goes round: propose, run, infer. Nature is the Standard Model, which the loop does not know. A run has 1000
# events now.

# %%
candidates = at(70, 84, 91, 99, 130) if FAST else at(64, 70, 77, 81, 85, 88, 91, 95, 99, 105, 112, 130)
rounds = 3 if FAST else 5
quick = {"n": 96, "inner": 128}
long_run = Events(bare, 200 if FAST else 1000)
loop = run_loop(long_run, Hidden(long_run, STANDARD, seed=1), candidates=candidates, rounds=rounds, seed=2, **quick)
for number, e in enumerate(loop.experiments):
    (sd_s2w, sd_g_f), gains = e.posterior.stddev, f"expected {e.predicted.value:.2f} nats, came {e.realised:.2f}"
    print(f"round {number + 1}: {float(e.design):3g} GeV, {gains}; standard deviations {sd_s2w:.4f} and {sd_g_f:.3f}")

# %% tags=["figure:active_sciencing"]
figure, panels = plt.subplots(2, rounds, figsize=(13.2, 5.4), sharey="row")
for number, (e, top, bottom) in enumerate(zip(loop.experiments, *panels, strict=True)):
    plots.gain_curve(e.choice, axes=top)
    top.set(ylabel="", title=f"round {number + 1}: {float(e.design):g} GeV")
    plots.posterior_2d({"": e.posterior}, truth=STANDARD, axes=bottom)
    bottom.get_legend().remove()
    bottom.set(xlim=(0.2, 0.26), ylim=(0.5, 1.5), ylabel="")
    bottom.set_xticks([0.2, 0.22, 0.24, 0.26])
panels[0, 0].set_ylabel("expected gain [nats]")
panels[1, 0].set_ylabel(bare.parameters[1].label)
plt.show()

# %% [markdown]
# Top: the gain before each round, a dot at the chosen energy. Bottom: the posterior after it, 68% and 95%; the cross is
# what nature had. The loop goes from one side of the $Z$ to the other, and cuts the band down. What stays open is the
# side of $\sin^2\theta_W = \frac14$, about which the angles of unpolarised beams are symmetric: there they hardly
# change, at any energy. We come back to that.

# %%
chosen = [float(e.design) for e in loop.experiments]
assert min(chosen) < 91.1876 < max(chosen)
assert loop.posterior.contains(STANDARD, 0.999)
shrunk = loop.posterior.stddev / prior.stddev
print(f"standard deviations, of the prior's: {shrunk[0]:.2f} and {shrunk[1]:.2f}")
assert (shrunk < at(1.0, 0.5)).all()

# %% [markdown]
# ### Against random energies
#
# One loop may be lucky. Several hidden $\theta$ are drawn from the prior, with runs of 400 events again; each is
# measured twice, by energies that were chosen and by energies that were drawn at random from the same candidates. We
# compare the area of the posterior, the square root of the determinant of its covariance. The same six $\theta$ with
# eleven other candidates gave a ratio of 0.61, 5.1 standard errors from 1.

# %%
torch.manual_seed(4)
hidden = prior.sample((2 if FAST else 6,)).double()
policies, few = {"gain": quick, "random": {}}, 2 if FAST else 4
loops = {
    policy: [
        run_loop(run, Hidden(run, theta, seed=k), policy=policy, candidates=candidates, rounds=few, seed=k, **options)
        for k, theta in enumerate(hidden)
    ]
    for policy, options in policies.items()
}


def log_area(belief):
    """log of the root of the determinant of the covariance of theta (2,)."""
    points = belief.sample((4096,))
    return 0.5 * float(torch.logdet(torch.cov(points.T)))


areas = {
    policy: at(*[[log_area(prior), *(log_area(e.posterior) for e in loop.experiments)] for loop in found])
    for policy, found in loops.items()
}
less = areas["gain"][:, -1] - areas["random"][:, -1]
error = float(less.std() / len(less) ** 0.5)
print(f"area after {few} rounds, chosen over random: {float(less.mean().exp()):.2f}, {-less.mean() / error:.1f} errors")
assert FAST or less.mean() < -error  # six thetas show the sign, two do not

# %% [markdown]
# And is the promise kept? The gain that was expected and the one that came, $\mathrm{KL}$(posterior $\|$ belief), must
# agree on average when nature's $\theta$ comes from the prior. That is a free test of simulator, likelihood and
# estimate together.

# %%
pooled = Loop(tuple(e for loop in loops["gain"] for e in loop.experiments), prior, "pooled")
ratio, error_of_ratio = pooled.predicted_over_realised()
print(f"predicted over realised: {ratio:.2f} +- {error_of_ratio:.2f}, {len(pooled.experiments)} rounds")
assert abs(ratio - 1) < 4 * error_of_ratio

figure, (left, right) = plt.subplots(1, 2, figsize=(10.0, 4.0))
for policy, colour, name in (("random", plots.GREY, "random"), ("gain", plots.BLUE, "chosen")):
    relative = (areas[policy] - areas[policy][:, :1]).exp()
    mean = relative.log().mean(0).exp()
    left.plot(torch.arange(few + 1), relative.T, color=colour, lw=0.8, alpha=0.45)
    left.plot(torch.arange(few + 1), mean, "o-", color=colour, lw=2.2, label=f"{name} energies")
left.set(xlabel="round", ylabel="area of posterior / prior", yscale="log", xticks=range(few + 1))
left.set_title(f"{len(hidden)} hidden $\\theta$, and their geometric mean")
left.legend(loc="lower left")
predicted, realised = at(*[(e.predicted.value, e.realised) for e in pooled.experiments]).T
right.axline((0, 0), slope=1, color=plots.GREY, lw=1)
right.plot(predicted, realised, "o", ms=5, color=plots.BLUE, alpha=0.7, mew=0)
right.plot(predicted.mean(), realised.mean(), "D", ms=9, color=plots.VERMILION, label="mean")
top = 1.08 * float(torch.cat([predicted, realised]).max())
right.set(xlabel="expected gain [nats]", ylabel="gain that came [nats]", xlim=(0, top), ylim=(0, top))
right.set_title("was the promise kept?")
right.legend(loc="upper left")
plt.show()

# %% [markdown]
# ## Without a likelihood
#
# So far the exact likelihood chose and measured. With radiation, mistaken charges and smearing a real experiment has
# none: it can simulate, no more. What it needs is one function $f(\theta, x, \sqrt s)$ that stands in for
# $\log p(x \mid \theta, \sqrt s)$ at *every* energy. `learn` trains it once, here from gold, and then the same calls
# take it in the place of the simulator.
#
# For a notebook we make the world smaller: energies from 80 to 100 GeV and runs of 100 events.

# %%
narrow = UniformPrior((Parameter("sqrt_s", 80.0, 100.0, unit="GeV"),))
size, epochs = (3000, {"max_epochs": 30}) if FAST else (20_000, {})
started = time.perf_counter()
learned = learn(world, prior, size, designs=narrow, labels="gold", seed=1, **epochs)
print(f"{size:,} events, trained in {time.perf_counter() - started:.0f} s")
print(f"the latents know {learned.excess:.4f} nats more of theta than the event: gold pays below 0.8")
assert learned.excess < 0.8

# %% [markdown]
# This `MuonPairs` does have an exact $p(x \mid \theta)$, six integrals for every event, which we kept from `learn`. It
# serves as the check: the gain curve, and the posterior after a loop whose every choice and every inference was made by
# the learned function.

# %%
small, steps = (Events(world, 50), at(82, 90, 98)) if FAST else (Events(world, 100), at(80, 84, 88, 92, 96, 100))
coarse = {"n": 96, "inner": 64 if FAST else 128}
curves = {
    name: propose(small, reader, prior, steps, seed=1, confirm=False, **coarse)
    for name, reader in {"exact": world, "learned": learned.estimator}.items()
}
off = curves["learned"].values - curves["exact"].values
error = (curves["learned"].errors.square() + curves["exact"].errors.square()).sqrt()
print("learned - exact gain, in standard errors:", [round(z, 1) for z in (off / error).tolist()])
assert (off.abs() < 4 * error).all()

last = 1 if FAST else 3
blind = run_loop(
    small,
    Hidden(small, STANDARD, seed=1),
    estimator=learned.estimator,
    candidates=steps,
    rounds=last,
    seed=1,
    **coarse,
)
told = torch.stack([e.x_obs for e in blind.experiments])
where = torch.stack([e.design for e in blind.experiments])
exact = infer(small, prior, told, design=where, iid=True)
print("energies:", ", ".join(f"{float(e):g} GeV" for e in where))

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10.0, 4.0))
plots.gain_curve(curves["exact"], label="exact likelihood", colour="black", axes=left)
plots.gain_curve(curves["learned"], label="learned", axes=left)
left.set(ylim=(0, None), title=f"{small.n} events, before any data")
left.legend(loc="lower left")
plots.posterior_2d({"learned": blind.posterior, "exact": exact}, truth=STANDARD, axes=right)
right.set(xlim=(0.2, 0.26), ylim=(0.5, 1.5), title=f"after {last * small.n} events")
right.legend(loc="lower right", fontsize=9)
plt.show()

# %% [markdown]
# The gain is an average, and easily right: the learned curve is the exact one within errors. The posterior asks more,
# since errors of $f$ add up over 300 events. Over four other trainings, each with data of its own, the total variation
# from the exact posterior after 300 events was 0.15 with a standard deviation of 0.08, and the learned mean of
# $G_F/G_F^0$ lay 0.35 exact standard deviations off (root mean square). The claim below allows four standard
# deviations; data that are read at the wrong energy, 4 GeV off, must break it. More simulations are the cure.

# %%
offset = (blind.posterior.mean - exact.mean) / exact.stddev
distance = total_variation(blind.posterior, exact)
elsewhere = total_variation(infer(small, prior, told, design=where + 4, iid=True), exact)
print(f"means differ by {offset[0]:.2f} and {offset[1]:.2f} standard deviations; total variation {distance:.3f}")
print(f"read at the wrong energy: {elsewhere:.3f}")
measured, sd = (0.075, 0.028) if FAST else (0.15, 0.08)
assert distance < measured + 4 * sd < elsewhere

# %% [markdown]
# ## What else to choose
#
# *Polarisation.* Energy is one knob; the polarisation $P$ of the electrons is another, and a design may have several
# axes. What would the next run of 400 events teach, after the loop above, if electrons were polarised? Then angles also
# tell on which side of $\frac14$ the mixing angle is, even at the $Z$, and that was still open:

# %%
beams = MuonPairs(radiation=False, polarised=True)
knobs = torch.cartesian_prod(at(84, 91, 99), at(0.0, 0.8))
next_run = propose(Events(beams, n_events), beams, loop.posterior, knobs, seed=3, **quick)
for (energy, polarisation), gain in zip(knobs.tolist(), next_run.gains, strict=True):
    print(f"{energy:g} GeV, P = {polarisation:g}: {gain.value:.2f} +- {gain.error:.2f} nats")
off, on = next_run.gains[2:4]  # at the Z
assert on.value - off.value > 4 * (on.error**2 + off.error**2) ** 0.5

# %% [markdown]
# *Cost.* Events are cheap at the $Z$ and dear elsewhere: the cross-section falls by a factor of a hundred. `cost=` of a
# design divides the gain, say by the luminosity that a run takes, and `Events(world, luminosity=...)` makes the number
# of events itself an outcome, which tells about the cross-section.
#
# *Aim.* `partial(expected_width, of="sin2_theta_w")` as the utility asks for one parameter, the other integrated out.
#
# *Real experiments.* Nature need not be a simulator. `run_loop(run, "experiment/", ...)` writes its question,
# `000.ask.json`, into the folder and stops; when someone has dropped the answer, `000.npy` or `000.csv`, the same call
# goes on, with the same decisions as if it had never stopped.
#
# The whole study, with a report, is `sbi-design study=weinberg` on the command line.
#
# ## What was not checked
#
# - *Looking ahead.* Each round takes what teaches most now. A pair of runs may be worth more than the best followed by
#   the best.
# - *The model.* A gain is what the experiment teaches if the simulator is right. A loop that returns to few energies
#   will not notice that it is wrong at the others.
# - *Coverage* of the learned posteriors: one training, one data set.
# - *Physics.* Tree level, leading-log radiation, a detector of four numbers, and no background. $G_F$ and
#   $\sin^2\theta_W$ are free of each other here; in the Standard Model they are not.
