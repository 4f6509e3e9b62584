"""The report of a study: what each experiment was expected to teach, what it taught, what random ones would have."""

from collections.abc import Callable, Iterator
from functools import partial
from html import escape
from pathlib import Path
from statistics import median
from typing import Any

import torch

import sbi_core
from sbi_core import page, plots
from sbi_core.design.findings import Findings
from sbi_core.inference import GridPosterior
from sbi_core.results import sentences
from sbi_core.seeding import seeded
from sbi_core.store import package_versions

CITATION = (
    "Method: active sciencing, after Cranmer, Heinrich and Louppe; information gain by Lindley, Ann. Math. Stat. 27 "
    "(1956) 986, and Foster et al., arXiv:1911.00294; gold by Brehmer et al., arXiv:1805.12244. "
    "Software: sbi-core {version}."
)


def write_report(path: str | Path, findings: Findings) -> Path:
    """Write findings as one HTML file; sections whose parts are missing are left out."""
    with plots.style():
        sections = [section for make in SECTIONS for section in make(findings)]
    return page.write(Path(path), f"{findings.study.plain['name']}: {findings.headline()}", sections)


def _header(findings: Findings) -> Iterator[str]:
    study, done = findings.study, len(findings.loop.experiments)
    lines = sentences(findings.loop.posterior) if done else ["Nothing has been observed yet"]
    result = "".join(f'<p class="result">{page.escaped(line)}</p>' for line in lines)
    if findings.exact is not None:
        result += f"<p>With the exact likelihood: {page.escaped('; '.join(sentences(findings.exact)))}</p>"
    if study.truth is not None:
        names = [axis.name for axis in study.simulator.parameters]
        hidden = ", ".join(f"{name} = {value:.6g}" for name, value in zip(names, study.truth.tolist(), strict=True))
        result += f"<p>The simulated nature hides {page.escaped(hidden)}.</p>"
    if findings.waiting:
        result += f"<p>{page.escaped(findings.headline())}</p>"
    facts = [f"{done} experiments of {study.simulator.name}", findings.loop.stopped]
    result += f"<p>{page.escaped(' · '.join(facts))}</p>"
    yield f"<header><h1>sbi-design · {escape(str(study.plain['name']))}</h1>{result}</header>"


def _choices(findings: Findings) -> Iterator[str]:
    loop, axes = findings.loop, findings.study.simulator.designs
    if not loop.experiments:
        return
    chosen, figures = [one.choice for one in loop.experiments if one.choice is not None], []
    if chosen and len(axes) == 1:
        caption = f"What the next experiment was expected to teach at each {axes[0].name}; dots are the chosen ones."
        figures.append(page.figure(partial(plots.gain_curves, loop), caption))
    elif chosen:
        caption = "What the last experiment was expected to teach at each design."
        figures.append(page.figure(partial(plots.gain_map, chosen[-1]), caption))
    shown = (0, 1) if len(findings.study.simulator.parameters) > 1 else (0,)
    what = "68% regions of highest density" if len(shown) > 1 else "Densities"
    draw = partial(plots.shrinking, loop, shown, truth=findings.study.truth)
    figures.append(page.figure(draw, f"{what} after so many experiments."))
    yield page.section("Which experiments, and what is known since", page.side_by_side(figures))


def _rounds(findings: Findings) -> Iterator[str]:
    loop, world = findings.loop, findings.study.simulator
    if not loop.experiments:
        return
    units = [f"{axis.name}{f' [{axis.unit}]' if axis.unit else ''}:number" for axis in world.designs]
    header = ["round:number", *units, "expected:number", "realised, nats:number"]
    header += [f"sd of {axis.name}:number" for axis in world.parameters]
    rows = []
    for number, one in enumerate(loop.experiments):
        gain = one.predicted
        expected = (
            "given" if gain is None else f"{page.number(gain.value, digits=3)} ± {page.number(gain.error, digits=1)}"
        )
        cells = [page.number(value, digits=5) for value in one.design.tolist()]
        widths = [page.number(value, digits=3) for value in one.posterior.stddev.tolist()]
        rows.append([str(number), *cells, expected, page.number(one.realised, digits=3), *widths])
    yield page.section("Round by round", page.table(header, rows))


def _tests(findings: Findings) -> Iterator[str]:
    loop, figures, lines = findings.loop, [], []
    asked = [one for one in loop.experiments if one.predicted is not None]
    if asked and findings.study.in_nats:
        caption = "Information in nats: what the rounds were expected to teach, and what they taught, summed up."
        figures.append(page.figure(partial(plots.gains_by_round, loop), caption))
    if len(asked) > 1 and findings.study.in_nats:
        value, error = loop.predicted_over_realised()
        lines.append(
            f"Predicted over realised information: {value:.2f} ± {error:.2f}; it is 1 on average if f is right."
        )
    if findings.baselines:
        lines += list(_more_information(findings))
        for k, axis in enumerate(findings.study.simulator.parameters):
            some = {"chosen designs": [loop], "random designs": findings.baselines}
            caption = f"Posterior standard deviation of {axis.name}; of random designs the median and the central 68%."
            figures.append(page.figure(partial(plots.widths_by_round, some, k), caption))
            ours = float(loop.posterior.stddev[k])
            theirs = [float(one.posterior.stddev[k]) for one in findings.baselines]
            beaten = sum(ours < one for one in theirs)
            lines.append(
                f"{axis.name}: sd {ours:.3g}, narrower than after {beaten} of the {len(theirs)} (median "
                f"{median(theirs):.3g})."
            )
    if figures:
        yield page.section("Was it worth choosing?", page.bullets(lines) + page.side_by_side(figures))


def _more_information(findings: Findings) -> Iterator[str]:
    """By how much the posterior is narrower, in all parameters together, than after random designs."""
    ours, *others = (one.posterior for one in (findings.loop, *findings.baselines))
    if all(isinstance(posterior, GridPosterior) for posterior in (ours, *others)):
        more = [_entropy(posterior) - _entropy(ours) for posterior in others]
        yield (
            f"In all, the chosen designs have told {median(more):.2f} nats more than the median of {len(more)} "
            "loops of random designs, as many each, at the same truth, whose noise was another"
            f"{'' if findings.study.cost is None else ', whatever they cost'}."
        )


def _entropy(posterior: Any) -> float:
    """-E log q in nats, of samples."""
    with seeded(0):
        samples = posterior.sample(torch.Size([4096]))
    return -float(posterior.log_prob(samples).mean())


def _learned(findings: Findings) -> Iterator[str]:
    found = findings.learned
    if found is None:
        text = "<p>Outcomes were read with the exact likelihood of the simulator; nothing was learned.</p>"
    else:
        bound = found["certificate"]
        lines = [
            f"f(θ, x, design) was learned from {found['simulations']:,} events with {found['labels']} labels.",
            f"On held-out events it shows at least {bound['value']:.3g} ± {bound['error']:.1g} nats of one event.",
        ]
        if found["excess"] is not None:
            lines.append(f"The latents say {found['excess']:.3g} nats more than one event does.")
        if findings.exact is None:
            lines.append("unchecked: no exact posterior is known to compare with")
        text = page.bullets(lines)
    flags = findings.flags() + (list(found["flags"]) if found else [])
    text += f"<h2>To know when reading this</h2>{page.bullets(flags)}" if flags else ""
    last = findings.loop.experiments[-1].posterior.verdicts if findings.loop.experiments else {}
    if last:
        said = [[escape(name), page.verdict(text)] for name, text in last.items()]
        text += f"<h2>How the last posterior was checked</h2>{page.table(['', 'verdict'], said)}"
    yield page.section("What the numbers rest on", text)


def _provenance(findings: Findings) -> Iterator[str]:
    study = findings.study
    versions = {**package_versions(), f"simulator {study.simulator.name}": study.simulator.version}
    citation = CITATION.format(version=sbi_core.__version__)
    yield page.provenance(study.seed, versions, findings.seconds, study.settings, citation)


SECTIONS: tuple[Callable[[Findings], Iterator[str]], ...] = (
    _header,
    _choices,
    _rounds,
    _tests,
    _learned,
    _provenance,
)
