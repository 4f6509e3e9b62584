"""The report of a run: one static HTML file without scripts, its pictures inside."""

import base64
import io
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import sbi_core
from sbi_core import plots
from sbi_core.results import Results
from sbi_core.simulator import Simulator

CITATION = (
    "Method: Brehmer, Louppe, Pavez and Cranmer, “Mining gold from implicit models to improve likelihood-free "
    "inference”, PNAS 117 (2020) 5242, arXiv:1805.12244; Stoye, Brehmer, Louppe, Pavez and Cranmer, “Likelihood-free "
    "inference with an improved cross-entropy estimator”, arXiv:1808.00973. Software: sbi-core {version}."
)

MEANING = {"coverage": " (whether intervals hold the truth as often as they say; it takes many simulated observations)"}
"""What would have been checked, where the name of the check does not say it."""

ALARMS = ("NOT", "contradicts", "DISAGREE", "FAILED", "too few draws", "too coarse")
"""Words of a verdict that say something is wrong."""

WORDS = {True: '<span class="good">passed</span>', False: '<span class="bad">FAILED</span>', None: "not counted"}

STYLE = """
:root { --ink: #1c2430; --soft: #5b6675; --line: #dfe4ea; --blue: #0072B2; --good: #00694c; --bad: #b34700; }
* { box-sizing: border-box; }
body { margin: 0; background: #f5f7f9; color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 66rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
header { border-top: 5px solid var(--blue); background: #fff; padding: 1.6rem 1.8rem; border-radius: 0 0 8px 8px; }
header p { margin: .35rem 0 0; color: var(--soft); }
h1 { font-size: 1rem; letter-spacing: .04em; color: var(--soft); margin: 0 0 .5rem; font-weight: 600; }
.result { font-size: 1.75rem; line-height: 1.3; font-weight: 650; color: var(--ink); margin: 0; }
section { background: #fff; border-radius: 8px; padding: 1.3rem 1.8rem 1.5rem; margin-top: 1.1rem; }
h2 { font-size: 1.2rem; margin: 0 0 .6rem; } h2:not(:first-child) { margin-top: 1.4rem; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(21rem, 1fr)); gap: 1.2rem; align-items: start; }
figure { margin: 0; } figure img { width: 100%; height: auto; display: block; }
.single { max-width: 44rem; margin: 0 auto; }
figcaption { color: var(--soft); font-size: .9rem; margin-top: .4rem; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th { text-align: left; color: var(--soft); font-weight: 600; }
th, td { padding: .32rem .8rem .32rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.good { color: var(--good); } .bad { color: var(--bad); font-weight: 600; } .soft { color: var(--soft); }
.verdict { font-weight: 600; } details { margin-top: .8rem; } summary { cursor: pointer; color: var(--blue); }
code, pre { font: .88rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
pre { overflow-x: auto; background: #f5f7f9; padding: .8rem 1rem; border-radius: 6px; margin: .5rem 0 0; }
ul { margin: .2rem 0; padding-left: 1.2rem; }
@media print { body { background: #fff; } section { break-inside: avoid; } }
"""


def write_report(path: str | Path, results: Results) -> Path:
    """Write `results` as one HTML file; sections whose parts are missing are left out."""
    path = Path(path)
    with plots.style():
        sections = [section for make in SECTIONS for section in make(results)]
    title = f"{results.name}: {results.headline()}"
    html = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(sections)
        + "\n</main>\n</body>\n</html>\n"
    )
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(html, encoding="utf-8")
    partial.replace(path)
    return path


def _header(results: Results) -> Iterator[str]:
    world = "made elsewhere" if results.simulator is None else f"of {results.simulator.name}"
    facts = [f"{results.n_simulations:,} simulations {world}"]
    if results.training is not None:
        facts.append(f"loss {results.training['loss']}")
    if results.x_obs is not None:
        facts.append(f"{len(results.x_obs):,} observation{'s' if len(results.x_obs) != 1 else ''}")
    lines = [results.headline()] if results.posterior is None else results.sentences(results.posterior)
    result = "".join(f'<p class="result">{_text(line)}</p>' for line in lines)
    if results.exact is not None:
        result += f"<p>With the exact likelihood: {_text('; '.join(results.sentences(results.exact)))}</p>"
    result += f"<p>{_text(' · '.join(facts))}</p>"
    yield f"<header><h1>sbi-run · {escape(results.name)}</h1>{result}</header>"


def _posterior(results: Results) -> Iterator[str]:
    if results.posterior is None:
        return
    shown = {"learned": results.posterior} | ({"exact": results.exact} if results.exact is not None else {})
    figures, count = [], len(results.parameters)
    if count == 2:
        figures.append(_figure(partial(plots.posterior_2d, shown), "Regions of highest density."))
    if count > 2:
        caption = "Every parameter, and the regions of highest density (68% and 95%) of every pair."
        size = 1.2 + (1.9 if count < 6 else 1.4) * count
        yield _section("Posterior", _figure(partial(plots.corner, shown), caption, (size, size), panels=count))
        return
    beside = ", and the posterior of the exact likelihood beside it." if results.exact is not None else "."
    for k, axis in enumerate(results.parameters):
        figures.append(_figure(partial(plots.posterior_1d, shown, k), f"Posterior density of {axis.name}{beside}"))
    world, x_obs = results.simulator, results.x_obs
    if results.exact is not None and world is not None and world.categories and x_obs is not None:
        caption = "What was observed, and what the posterior predicts with the exact likelihood (band: 68% of counts)."
        figures.append(_figure(partial(plots.observation, x_obs, world, results.posterior), caption))
    yield _section("Posterior", _pair(figures))


def _numbers(results: Results) -> Iterator[str]:
    rows = [
        [escape(name), _number(n["value"], n["unit"]), _verdict(n["verdict"])] for name, n in results.numbers().items()
    ]
    checks = {} if results.posterior is None else results.posterior.verdicts
    text = _table(["", "value:number", "verdict"], rows)
    if checks:
        said = [[escape(name), _verdict(found)] for name, found in checks.items()]
        text += f"<h2>How the posterior was checked</h2>{_table(['', 'verdict'], said)}"
    yield _section("Every number with its verdict", text)


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
    figures = [_figure(partial(draw, found), captions[name]) for name, draw in drawn.items() if name in known]
    said = f'<p class="verdict {"good" if found.passed else "bad"}">{_text(found.verdict)}</p>'
    rows = [
        [escape(f"{check.name}{f' of {check.about}' if check.about else ''}"), WORDS[check.passed], _text(check.text)]
        for check in found.checks
    ]
    table = _table(["check", "verdict", "found"], rows)
    details = f"<details><summary>All checks</summary>{table}</details>"
    yield _section("Posteriors of simulations whose theta is known", f"{said}{_pair(figures)}{details}")


def _unchecked(results: Results) -> Iterator[str]:
    unchecked = [f"{line}{MEANING.get(line.split(':')[0], '')}" for line in results.unchecked()]
    text = _list(unchecked) if unchecked else "<p>Nothing that this program knows how to check.</p>"
    flags = [*results.summary()["flags"]]
    if flags:
        text += f"<h2>To know when reading this</h2>{_list(flags)}"
    yield _section("What was not checked", text)


def _world(results: Results) -> Iterator[str]:
    world, data = results.simulator, results.data
    if world is None or data is None or type(world).draw is Simulator.draw:
        return
    doc = (type(world).__doc__ or world.name).strip().splitlines()[0]
    figure = _figure(partial(plots.board, world, data), f"Sampled simulations. {doc}", (8.4, 5.4))
    yield _section("The world", f'<div class="single">{figure}</div>')


def _gold(results: Results) -> Iterator[str]:
    if results.gold is None:
        return
    tests: Sequence[Mapping[str, Any]] = results.gold["tests"]
    size = (7.8, 0.9 + 0.26 * len(tests))
    figure = _figure(
        partial(plots.gold_scores, tests),
        "Every test is a mean that vanishes for true gold. Outside the band, one clean check in 10,000 has a point.",
        size,
    )
    rows = [
        [
            escape(test["name"]),
            escape(test["parameter"]),
            _number(test["statistic"]),
            _number(test["z"], digits=2),
            WORDS[test["passed"]],
        ]
        for test in tests
    ]
    table = _table(["test", "about", "statistic:number", "z:number", "verdict"], rows)
    said = (
        f'<p class="verdict {"good" if results.gold["passed"] else "bad"}">{escape(str(results.gold["verdict"]))}</p>'
    )
    yield _section(
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
        figures.append(_figure(partial(plots.training_curves, history, best_epoch=best), caption))
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
        figures.append(_figure(partial(plots.log_ratios, ratios), caption))
    if figures:
        yield _section("Learning", _pair(figures))


def _provenance(results: Results) -> Iterator[str]:
    rows = [["seed", escape(str(results.seed))]]
    rows += [[escape(name), escape(version)] for name, version in results.versions.items()]
    rows += [[f"time to {escape(stage)}", f"{seconds:.1f} s"] for stage, seconds in results.seconds.items()]
    settings = escape(json.dumps(results.settings, indent=1, ensure_ascii=False))
    citation = escape(CITATION.format(version=sbi_core.__version__))
    yield _section(
        "How it was made",
        f"{_table(['', ''], rows)}<details><summary>Configuration</summary><pre>{settings}</pre></details>"
        f'<p class="soft">{citation}</p>',
    )


SECTIONS: tuple[Callable[[Results], Iterator[str]], ...] = (
    _header,
    _posterior,
    _numbers,
    _diagnosis,
    _unchecked,
    _world,
    _gold,
    _training,
    _provenance,
)


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def _pair(figures: Sequence[str]) -> str:
    return f'<div class="{"pair" if len(figures) > 1 else "single"}">{"".join(figures)}</div>'


def _list(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows of ready HTML; a column whose title ends in ':number' is set as numbers."""
    kinds = [' class="number"' if title.endswith(":number") else "" for title in header]
    titles = [title.removesuffix(":number") for title in header]
    head = "".join(f"<th{kind}>{escape(title)}</th>" for kind, title in zip(kinds, titles, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{kind}>{cell}</td>" for kind, cell in zip(kinds, row, strict=True)) + "</tr>"
        for row in rows
    )
    return f"<table>{f'<thead><tr>{head}</tr></thead>' if any(titles) else ''}<tbody>{body}</tbody></table>"


def _text(text: str) -> str:
    """Escape, with a true minus before numbers."""
    return re.sub(r"(?<![\w.])-(?=\d)", "−", escape(text))


def _number(value: Any, unit: str = "", *, digits: int = 4) -> str:
    if value is None or not math.isfinite(value):
        return "—"
    if isinstance(value, int):
        text = f"{value:,}"
    elif digits == 2:
        text = f"{value:.2f}"
    else:
        text = f"{value:.{digits}g}"
    return escape(f"{text} {unit}".strip().replace("-", "−"))


def _verdict(text: str) -> str:
    kind = "soft" if "unchecked" in text else "bad" if any(word in text for word in ALARMS) else "good"
    return f'<span class="{kind}">{_text(text)}</span>'


def _figure(draw: Callable[..., Any], caption: str, size: tuple[float, float] | None = None, *, panels: int = 1) -> str:
    """Draw on a new figure, of so many panels across and down, and return it as HTML."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size)
    draw(axes=figure.add_subplot() if panels == 1 else figure.subplots(panels, panels))
    content = io.BytesIO()
    figure.savefig(content, format="svg", metadata={"Date": None, "Creator": None})
    image = base64.b64encode(content.getvalue()).decode()
    return (
        f'<figure><img alt="{escape(caption, quote=True)}" src="data:image/svg+xml;base64,{image}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )
