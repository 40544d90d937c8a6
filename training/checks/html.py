"""The whole report as one page: nothing is loaded, nothing runs, and every text of the data is shown as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from training.checks.finding import Cell, Chart, Finding, count
from training.checks.svg import number, svg

if TYPE_CHECKING:
    from training.checks.report import DataReport

_STYLE = """
:root{color-scheme:light dark;--ink:#1a202c;--pale:#5a6678;--paper:#fff;--panel:#f5f7fa;--line:#d5dbe3;
--warn:#9c4a06;--note:#2b5a94;--s0:#2b6cb0;--s1:#dd6b20;--s2:#38806b}
@media(prefers-color-scheme:dark){:root{--ink:#e6eaf0;--pale:#9fabbd;--paper:#14181f;--panel:#1d232d;--line:#374252;
--warn:#f6ad55;--note:#90cdf4;--s0:#63b3ed;--s1:#f6ad55;--s2:#68d3aa}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
main{max-width:56rem;margin:0 auto;padding:1rem}
h1{font-size:1.5rem;margin:.5rem 0}h2{font-size:1.15rem;margin:2rem 0 .5rem}
p{margin:.5rem 0;overflow-wrap:anywhere}
.pale{color:var(--pale)}
section{background:var(--panel);border:1px solid var(--line);border-left:5px solid var(--note);border-radius:6px;
padding:.6rem 1rem;margin:1rem 0}
section.warning{border-left-color:var(--warn)}
section h3{font-size:.95rem;margin:0;color:var(--note)}section.warning h3{color:var(--warn)}
.scroll{overflow-x:auto;margin:.6rem 0}
table{border-collapse:collapse;font-size:.875rem}
th,td{text-align:left;vertical-align:top;padding:.25rem .75rem .25rem 0;border-bottom:1px solid var(--line);
overflow-wrap:break-word;max-width:min(22rem,65vw)}
td.number{text-align:right;font-variant-numeric:tabular-nums}
th{color:var(--pale);font-weight:600}
figure{margin:.6rem 0}figcaption{font-size:.875rem;color:var(--pale)}
svg{display:block}svg text{font:12px system-ui,sans-serif;fill:var(--ink)}
.axis{stroke:var(--line)}.s0{fill:var(--s0);background:var(--s0)}.s1{fill:var(--s1);background:var(--s1)}
.s2{fill:var(--s2);background:var(--s2)}
i{display:inline-block;width:.75em;height:.75em;margin:0 .35em 0 .8em}
summary{cursor:pointer;color:var(--pale);font-size:.875rem}
""".strip()


def page(report: DataReport) -> str:
    """Write the page; `report` is whole, the terminal shows its beginning."""
    warnings = [finding for finding in report.findings if finding.severity == "warning"]
    notes = [finding for finding in report.findings if finding.severity == "note"]
    title = f"{report.family} data: {count(len(warnings), 'warning')}, {count(len(notes), 'note')}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        '<p class="pale">Rows are counted from 1 in each split, as they were read.</p>',
        _splits(report.splits),
        *[f"<p>{escape(_sentence(note))}</p>" for note in report.notes],
        *_chapter("What to look at", warnings),
        *_chapter("Good to know", notes),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body><main>{''.join(parts)}</main></body></html>\n"
    )


def _splits(splits: Mapping[str, Mapping[str, Any]]) -> str:
    rows: list[Mapping[str, Cell]] = [
        {"split": name, **{key: _figure(value) for key, value in figures.items() if key != "sha256"}}
        for name, figures in splits.items()
    ]
    return _table(rows)


def _figure(value: Any) -> Cell:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {number(part)}" for name, part in value.items())
    return value if isinstance(value, int | float) else str(value)


def _chapter(title: str, findings: Sequence[Finding]) -> list[str]:
    return [f"<h2>{title}</h2>", *map(_section, findings)] if findings else []


def _section(finding: Finding) -> str:
    name = finding.rule.replace("_", " ")
    parts = [
        f'<section class="{finding.severity}" id="{escape(finding.rule)}"><h3>{finding.severity}: {escape(name)}</h3>',
        f"<p>{escape(_sentence(finding.sentence))}</p>",
    ]
    if finding.chart is not None:
        parts.append(_chart(finding.chart))
    if finding.examples:
        parts.append(_table(finding.examples))
    return "".join([*parts, "</section>"])


def _chart(chart: Chart) -> str:
    keys = "".join(f'<i class="s{place}"></i>{escape(name)}' for place, name in enumerate(chart.series))
    figures: list[Mapping[str, Cell]] = [
        {"": name, **{split: round(values[row], 4) for split, values in chart.series.items()}}
        for row, name in enumerate(chart.names)
    ]
    return (
        f"<figure><figcaption>{escape(chart.title)} {keys if len(chart.series) > 1 else ''}</figcaption>"
        f'<div class="scroll" tabindex="0">{svg(chart)}</div>'
        f"<details><summary>the figures ({escape(chart.unit)})</summary>{_table(figures)}</details></figure>"
    )


def _table(rows: Sequence[Mapping[str, Cell]]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    body = "".join(f"<tr>{''.join(_cell(row.get(name, '')) for name in names)}</tr>" for row in rows)
    return f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(cell: Cell) -> str:
    if isinstance(cell, str):
        return f"<td>{escape(cell)}</td>"
    return f'<td class="number">{number(cell) if isinstance(cell, int) else f"{cell:g}"}</td>'


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
