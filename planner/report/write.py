"""Writes a report as Markdown (charts as files beside it) or as one HTML page (charts within)."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from planner.report.content import Chart, Heading, Items, Part, Table, Text

_STYLE = """
body{font:15px/1.5 Inter,system-ui,sans-serif;color:#161b22;max-width:980px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}
table{border-collapse:collapse;font-size:.86rem;width:100%}
th,td{border-bottom:1px solid #d5dae1;padding:.3rem .5rem;text-align:left;vertical-align:top}
th{color:#555f6d;font-weight:600}.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
svg{max-width:100%;height:auto}
figure{margin:1rem 0}figcaption{color:#555f6d;font-size:.85rem}
""".strip()


def markdown(parts: Sequence[Part], chart_file: str = "") -> str:
    """The report as Markdown; ``chart_file`` is the pattern of the charts' file names (``plan-{}.svg``), empty leaves them out."""
    return "\n\n".join(filter(None, (_markdown(part, chart_file) for part in parts))) + "\n"


def html(parts: Sequence[Part], title: str) -> str:
    """The report as one page that needs nothing else."""
    body = "\n".join(_html(part) for part in parts)
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n{body}\n</body></html>\n'


def markdown_table(table: Table) -> str:
    """One table; figures stand at the right."""
    rule = ["---:" if index in table.figures else "---" for index in range(len(table.headings))]
    return "\n".join(_line(cells) for cells in (table.headings, rule, *table.rows))


def _markdown(part: Part, chart_file: str) -> str:
    if isinstance(part, Heading):
        return f"{'#' * part.level} {part.text}"
    if isinstance(part, Text):
        return f"**{part.strong}** {part.text}" if part.strong else part.text
    if isinstance(part, Items):
        return "\n".join(f"- {line}" for line in part.lines)
    if isinstance(part, Chart):
        return f"![{part.caption}]({chart_file.format(part.name)})" if chart_file else ""
    return markdown_table(part)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _html(part: Part) -> str:
    if isinstance(part, Heading):
        return f"<h{part.level}>{escape(part.text)}</h{part.level}>"
    if isinstance(part, Text):
        strong = f"<strong>{escape(part.strong)}</strong> " if part.strong else ""
        return f"<p>{strong}{escape(part.text)}</p>"
    if isinstance(part, Items):
        return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in part.lines)}</ul>"
    if isinstance(part, Chart):
        return f"<figure>{part.svg}<figcaption>{escape(part.caption)}</figcaption></figure>"
    head = "".join(f"<th{_class(part, index)}>{escape(text)}</th>" for index, text in enumerate(part.headings))
    rows = ("".join(f"<td{_class(part, index)}>{escape(text)}</td>" for index, text in enumerate(row)) for row in part.rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(f'<tr>{row}</tr>' for row in rows)}</tbody></table>"


def _class(table: Table, column: int) -> str:
    return ' class="n"' if column in table.figures else ""
