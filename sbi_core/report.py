"""The report of a run: one static HTML file without scripts, its pictures inside."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import sbi_core
from sbi_core import page, plots
from sbi_core.results import Results, sentences
from sbi_core.simulator import Simulator

CITATION = (
    "Method: Brehmer, Louppe, Pavez and Cranmer, “Mining gold from implicit models to improve likelihood-free "
    "inference”, PNAS 117 (2020) 5242, arXiv:1805.12244; Stoye, Brehmer, Louppe, Pavez and Cranmer, “Likelihood-free "
    "inference with an improved cross-entropy estimator”, arXiv:1808.00973. Software: sbi-core {version}."
)

MEANING = {"coverage": " (whether intervals hold the truth as often as they say; it takes many simulated observations)"}
"""What would have been checked, where the name of the check does not say it."""

WORDS = {True: '<span class="good">passed</span>', False: '<span class="bad">FAILED</span>', None: "not counted"}


def write_report(path: str | Path, results: Results) -> Path:
    """Write `results` as one HTML file; sections whose parts are missing are left out."""
    with plots.style():
        sections = [section for make in SECTIONS for section in make(results)]
    return page.write(Path(path), f"{results.name}: {results.headline()}", sections)


def _header(results: Results) -> Iterator[str]:
    world = "made elsewhere" if results.simulator is None else f"of {results.simulator.name}"
    facts = [f"{results.n_simulations:,} simulations {world}"]
    if results.training is not None:
        facts.append(f"loss {results.training['loss']}")
    if results.x_obs is not None:
        facts.append(f"{len(results.x_obs):,} observation{'s' if len(results.x_obs) != 1 else ''}")
    lines = [results.headline()] if results.posterior is None else sentences(results.posterior)
    result = "".join(f'<p class="result">{page.escaped(line)}</p>' for line in lines)
    if results.exact is not None:
        result += f"<p>With the exact likelihood: {page.escaped('; '.join(sentences(results.exact)))}</p>"
    result += f"<p>{page.escaped(' · '.join(facts))}</p>"
    yield f"<header><h1>sbi-run · {escape(results.name)}</h1>{result}</header>"


def _posterior(results: Results) -> Iterator[str]:
    if results.posterior is None:
        return
    shown = {"learned": results.posterior} | ({"exact": results.exact} if results.exact is not None else {})
    figures, count = [], len(results.parameters)
    if count == 2:
        figures.append(page.figure(partial(plots.posterior_2d, shown), "Regions of highest density."))
    if count > 2:
        caption = "Every parameter, and the regions of highest density (68% and 95%) of every pair."
        size = 1.2 + (1.9 if count < 6 else 1.4) * count
        yield page.section("Posterior", page.figure(partial(plots.corner, shown), caption, (size, size), panels=count))
        return
    beside = ", and the posterior of the exact likelihood beside it." if results.exact is not None else "."
    for k, axis in enumerate(results.parameters):
        figures.append(page.figure(partial(plots.posterior_1d, shown, k), f"Posterior density of {axis.name}{beside}"))
    world, x_obs = results.simulator, results.x_obs
    if results.exact is not None and world is not None and world.categories and x_obs is not None:
        caption = "What was observed, and what the posterior predicts with the exact likelihood (band: 68% of counts)."
        figures.append(page.figure(partial(plots.observation, x_obs, world, results.posterior), caption))
    yield page.section("Posterior", page.side_by_side(figures))


def _limits(results: Results) -> Iterator[str]:
    if not results.limits:
        return
    figures, rows = [], []
    for name, found in results.limits.items():
        figures.append(page.figure(partial(plots.profile, found), f"Profile likelihood of {name}, and its sets."))
        for level, pieces in found.intervals.items():
            said = "; ".join(page.verdict(f"{about}: {text}") for about, text in found.verdicts.items())
            text = page.escaped(" and ".join(map(str, pieces)) or "empty")
            rows.append([escape(name), f"{level:.1%}", text, said if level == found.levels[0] else ""])
    yield page.section(
        "Limits", f"{page.side_by_side(figures)}{page.table(['', 'level', 'set', 'how it was checked'], rows)}"
    )


def _numbers(results: Results) -> Iterator[str]:
    rows = [
        [escape(name), page.number(n["value"], n["unit"]), page.verdict(n["verdict"])]
        for name, n in results.numbers().items()
    ]
    checks = {} if results.posterior is None else results.posterior.verdicts
    text = page.table(["", "value:number", "verdict"], rows)
    if checks:
        said = [[escape(name), page.verdict(found)] for name, found in checks.items()]
        text += f"<h2>How the posterior was checked</h2>{page.table(['', 'verdict'], said)}"
    yield page.section("Every number with its verdict", text)


def _diagnosis(results: Results) -> Iterator[str]:
    found = results.diagnosis
    if found is None:
        return
    known = {curve.name for curve in found.curves}
    captions = {
        "ranks": "Ranks of true thetas among draws of their posteriors; nothing wrong stays in the grey band.",
        "credibility": "How often regions hold the truth, by their level, with bands.",
        "ratio closure": "Simulations at one theta, reweighted to another: what a classifier can tell.",
    }
    drawn = {"ranks": plots.ranks, "credibility": plots.coverage, "ratio closure": plots.closure}
    figures = [page.figure(partial(draw, found), captions[name]) for name, draw in drawn.items() if name in known]
    said = f'<p class="verdict {"good" if found.passed else "bad"}">{page.escaped(found.verdict)}</p>'
    rows = [
        [
            escape(f"{check.name}{f' of {check.about}' if check.about else ''}"),
            WORDS[check.passed],
            page.escaped(check.text),
        ]
        for check in found.checks
    ]
    table = page.table(["check", "verdict", "found"], rows)
    details = f"<details><summary>All checks</summary>{table}</details>"
    yield page.section("Posteriors of simulations whose theta is known", f"{said}{page.side_by_side(figures)}{details}")


def _predicted(results: Results) -> Iterator[str]:
    found = results.predicted
    if found is None:
        return
    caption = "What was observed, and the bands that hold 68% and 95% of what the posterior predicts."
    if not found.alike:
        caption += " Each statistic from the median of its predictions, in units of their 68% band."
    wide = (8.4, 4.2) if len(found.names) > 4 else None
    figure = page.figure(partial(plots.predictive, found), caption, wide)
    rows = [[escape(check.name), WORDS[check.passed], page.escaped(check.text)] for check in found.checks]
    said = f'<p class="verdict">{page.verdict(found.verdict)}</p>'
    table = page.table(["test", "verdict", "found"], rows)
    yield page.section(
        "Does the posterior predict what was observed?",
        f'{said}<div class="single">{figure}</div><details><summary>All tests</summary>{table}</details>',
    )


def _unchecked(results: Results) -> Iterator[str]:
    unchecked = [f"{line}{MEANING.get(line.split(':')[0], '')}" for line in results.unchecked()]
    text = page.bullets(unchecked) if unchecked else "<p>Nothing that this program knows how to check.</p>"
    flags = [*results.summary()["flags"]]
    if flags:
        text += f"<h2>To know when reading this</h2>{page.bullets(flags)}"
    yield page.section("What was not checked", text)


def _world(results: Results) -> Iterator[str]:
    world, data = results.simulator, results.data
    if world is None or data is None or type(world).draw is Simulator.draw:
        return
    doc = (type(world).__doc__ or world.name).strip().splitlines()[0]
    figure = page.figure(partial(plots.board, world, data), f"Sampled simulations. {doc}", (8.4, 5.4))
    yield page.section("The world", f'<div class="single">{figure}</div>')


def _gold(results: Results) -> Iterator[str]:
    if results.gold is None:
        return
    tests: Sequence[Mapping[str, Any]] = results.gold["tests"]
    size = (7.8, 0.9 + 0.26 * len(tests))
    figure = page.figure(
        partial(plots.gold_scores, tests),
        "Every test is a mean that vanishes for true gold. Outside the band, one clean check in 10,000 has a point.",
        size,
    )
    rows = [
        [
            escape(test["name"]),
            escape(test["parameter"]),
            page.number(test["statistic"]),
            page.number(test["z"], digits=2),
            WORDS[test["passed"]],
        ]
        for test in tests
    ]
    table = page.table(["test", "about", "statistic:number", "z:number", "verdict"], rows)
    said = (
        f'<p class="verdict {"good" if results.gold["passed"] else "bad"}">{escape(str(results.gold["verdict"]))}</p>'
    )
    yield page.section(
        "Gold check", f'{said}<div class="single">{figure}</div><details><summary>All tests</summary>{table}</details>'
    )


def _training(results: Results) -> Iterator[str]:
    figures = []
    if results.training is not None:
        training = results.training
        best = training["best_epoch"]
        n_train, n_held_out = training["rows"]
        caption = (
            f"Training on {n_train:,} rows, {n_held_out:,} held out, {training['loss']}; {training['seconds']:.1f} s."
        )
        history = training["history"]
        figures.append(page.figure(partial(plots.training_curves, history, best_epoch=best), caption))
    ratios = results.ratios
    if ratios is not None and (ratios.exact is not None or ratios.joint is not None):
        caption = (
            f"Learned against exact log likelihood ratio of {len(ratios.learned):,} fresh simulations, each at its own "
            f"theta against another's: rms error {ratios.rms:.3g} nats."
            if ratios.exact is not None
            else "Mined log ratios scatter around the learned one (rows of the training data)."
        )
        if ratios.exact is not None and ratios.joint is not None:
            caption += " Orange: the mined joint ratios it was learned from, whose scatter is the latents'."
        figures.append(page.figure(partial(plots.log_ratios, ratios), caption))
    if figures:
        yield page.section("Learning", page.side_by_side(figures))


def _provenance(results: Results) -> Iterator[str]:
    yield page.provenance(
        results.seed, results.versions, results.seconds, results.settings, CITATION.format(version=sbi_core.__version__)
    )


SECTIONS: tuple[Callable[[Results], Iterator[str]], ...] = (
    _header,
    _posterior,
    _limits,
    _numbers,
    _predicted,
    _diagnosis,
    _unchecked,
    _world,
    _gold,
    _training,
    _provenance,
)
