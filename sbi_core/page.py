"""A page of HTML without scripts: its style, sections, tables, figures and verdicts."""

import base64
import io
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

ALARMS = ("NOT", "doubtful", "contradicts", "DISAGREE", "FAILED", "too few draws", "too coarse")
"""Words of a verdict that say something is wrong."""

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


def write(path: Path, title: str, sections: Sequence[str]) -> Path:
    """Write ready sections as one file, atomically."""
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


def section(title: str, body: str) -> str:
    """One part of the page; the body is HTML."""
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def side_by_side(figures: Sequence[str]) -> str:
    """Ready figures in two columns."""
    return f'<div class="{"pair" if len(figures) > 1 else "single"}">{"".join(figures)}</div>'


def bullets(lines: Sequence[str]) -> str:
    """A list of plain sentences."""
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows of ready HTML; a column whose title ends in ':number' is set as numbers."""
    kinds = [' class="number"' if title.endswith(":number") else "" for title in header]
    titles = [title.removesuffix(":number") for title in header]
    head = "".join(f"<th{kind}>{escape(title)}</th>" for kind, title in zip(kinds, titles, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{kind}>{cell}</td>" for kind, cell in zip(kinds, row, strict=True)) + "</tr>"
        for row in rows
    )
    return f"<table>{f'<thead><tr>{head}</tr></thead>' if any(titles) else ''}<tbody>{body}</tbody></table>"


def provenance(
    seed: int | None,
    versions: Mapping[str, str],
    seconds: Mapping[str, float],
    settings: Mapping[str, Any],
    citation: str,
) -> str:
    """The last part of a page: how it was made."""
    rows = [["seed", escape(str(seed))]]
    rows += [[escape(name), escape(version)] for name, version in versions.items()]
    rows += [[f"time to {escape(stage)}", f"{took:.1f} s"] for stage, took in seconds.items()]
    found = escape(json.dumps(settings, indent=1, ensure_ascii=False))
    return section(
        "How it was made",
        f"{table(['', ''], rows)}<details><summary>Configuration</summary><pre>{found}</pre></details>"
        f'<p class="soft">{escape(citation)}</p>',
    )


def escaped(text: str) -> str:
    """Escape, with a true minus before numbers."""
    return re.sub(r"(?<![\w.])-(?=\d)", "−", escape(text))


def number(value: Any, unit: str = "", *, digits: int = 4) -> str:
    """A number with its unit; a dash where it is none."""
    if value is None or not math.isfinite(value):
        return "—"
    if isinstance(value, int):
        text = f"{value:,}"
    elif digits == 2:
        text = f"{value:.2f}"
    else:
        text = f"{value:.{digits}g}"
    return escape(f"{text} {unit}".strip().replace("-", "−"))


def verdict(text: str) -> str:
    """A verdict in the colour of what it says."""
    kind = "soft" if "unchecked" in text else "bad" if any(word in text for word in ALARMS) else "good"
    return f'<span class="{kind}">{escaped(text)}</span>'


def figure(draw: Callable[..., Any], caption: str, size: tuple[float, float] | None = None, *, panels: int = 1) -> str:
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
