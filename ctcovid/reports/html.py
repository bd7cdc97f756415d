"""One HTML file with tables and figures, that needs nothing but a browser: no script, no network."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from ctcovid.reports.drawing import Picture
from ctcovid.reports.tables import Table, file_name, shown

# The policy lets a browser refuse anything that is not in the file itself.
HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #111; background: #fff; margin: 0 auto; max-width: 1500px; padding: 1rem; }}
h1 {{ font-size: 1.5rem; }} h2 {{ font-size: 1.2rem; margin-top: 2.5rem; border-bottom: 1px solid #bbb; }} h3 {{ font-size: 1rem; }}
p, li {{ max-width: 70rem; }}
/* White sheets move with the table and lay the shadows bare at the edge beyond which there is more. */
.wide {{ overflow-x: auto; background:
  linear-gradient(to left, #fff 40%, #fff0) right / 3rem 100% no-repeat local,
  linear-gradient(to right, #fff 40%, #fff0) left / 3rem 100% no-repeat local,
  linear-gradient(to left, #0006, #0000) right / 1.2rem 100% no-repeat scroll,
  linear-gradient(to right, #0006, #0000) left / 1.2rem 100% no-repeat scroll; }}
table {{ border-collapse: collapse; font-size: 0.85rem; }}
th, td {{ padding: 0.25rem 0.6rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }}
th {{ border-bottom: 2px solid #111; vertical-align: bottom; }}
.text {{ text-align: left; }}
th:first-child, td:first-child {{ position: sticky; left: 0; background: #fff; }}
li {{ overflow-wrap: anywhere; }}
.note {{ font-size: 0.85rem; color: #333; margin: 0.4rem 0; overflow-wrap: anywhere; }}
.figures {{ display: flex; flex-wrap: wrap; gap: 1.5rem; }}
figure {{ margin: 1rem 0; max-width: 100%; }}
img {{ max-width: 100%; height: auto; display: block; }}
figcaption {{ font-size: 0.85rem; max-width: 28rem; overflow-wrap: anywhere; }}
ul {{ padding-left: 1.2rem; }}
</style>
</head>
<body>
"""


@dataclass(frozen=True)
class Section:
    """A heading with sentences, tables and figures below it."""

    heading: str
    notes: Sequence[str] = field(default_factory=tuple)
    tables: Sequence[Table] = field(default_factory=tuple)
    pictures: Sequence[Picture] = field(default_factory=tuple)


def page(title: str, lead: str, sections: Sequence[Section]) -> str:
    """The whole report; each figure is drawn into it and offers its data as CSV, and so does each table."""
    parts = [HEAD.format(title=escape(title)), f"<h1>{escape(title)}</h1>\n<p>{escape(lead)}</p>\n"]
    for section in sections:
        parts.append(f"<h2>{escape(section.heading)}</h2>\n")
        if section.notes:
            parts.append("<ul>\n" + "".join(f"<li>{escape(note)}</li>\n" for note in section.notes) + "</ul>\n")
        parts += [_table(table, f"{file_name(table.title or section.heading)}.csv") for table in section.tables]
        if section.pictures:
            parts.append('<div class="figures">\n' + "".join(map(_figure, section.pictures)) + "</div>\n")
    return "".join([*parts, "</body>\n</html>\n"])


def _table(table: Table, name: str) -> str:
    def row(cells: Sequence[str], tag: str, number: int | None) -> str:
        marked = [f"<b>{escape(cell)}</b>" if (number, at) in table.bold else escape(cell) for at, cell in enumerate(cells)]
        classes = [' class="text"' if at < table.text_columns else "" for at in range(len(cells))]
        return "<tr>" + "".join(f"<{tag}{kind}>{cell}</{tag}>" for kind, cell in zip(classes, marked, strict=True)) + "</tr>\n"

    heading = f"<h3>{escape(table.title)}</h3>\n" if table.title else ""
    body = "".join(row([shown(cell) for cell in cells], "td", number) for number, cells in enumerate(table.rows))
    notes = "".join(f'<p class="note">{escape(note)}</p>\n' for note in table.notes)
    grid = (
        f'<div class="wide" tabindex="0"><table>\n<thead>{row(table.columns, "th", None)}</thead>\n<tbody>{body}</tbody>\n</table></div>\n'
    )
    return f'{heading}{grid}{notes}<p class="note">{_download(table.csv(), name)}</p>\n'


def _figure(picture: Picture) -> str:
    plot, content = picture.plot, base64.b64encode(picture.files["svg"]).decode("ascii")
    image = f'<img alt="{escape(plot.title)}" src="data:image/svg+xml;base64,{content}">'
    caption = f"<b>{escape(plot.title)}.</b> {escape(plot.caption)} {_download(plot.csv(), plot.name + '.csv')}"
    return f"<figure>\n{image}\n<figcaption>{caption}</figcaption>\n</figure>\n"


def _download(text: str, name: str) -> str:
    data = base64.b64encode(text.encode()).decode("ascii")
    return f'<a download="{escape(name)}" href="data:text/csv;charset=utf-8;base64,{data}">Data as CSV</a>'
