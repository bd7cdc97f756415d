"""Tables for a manuscript, with LaTeX's booktabs."""

from __future__ import annotations

from ctcovid.reports.tables import Table, shown

SIGNS = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "±": r"$\pm$",
    "−": "$-$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "†": r"\dag{}",
    "×": r"$\times$",
}


def latex(table: Table) -> str:
    """The table with its title and notes as caption; needs ``\\usepackage{booktabs}``."""
    lines = [" & ".join(map(escaped, table.columns)) + r" \\ \midrule"]
    for number, row in enumerate(table.rows):
        cells = [escaped(shown(cell)) for cell in row]
        lines.append(" & ".join(rf"\textbf{{{text}}}" if (number, at) in table.bold else text for at, text in enumerate(cells)) + r" \\")
    caption = escaped(" ".join([f"{table.title}." if table.title else "", *table.notes]).strip())
    columns = "l" * table.text_columns + "r" * (len(table.columns) - table.text_columns)
    body = "\n".join([rf"\begin{{tabular}}{{{columns}}} \toprule", *lines, r"\bottomrule", r"\end{tabular}"])
    return f"\\begin{{table}}\n\\caption{{{caption}}}\n{body}\n\\end{{table}}\n"


def escaped(text: str) -> str:
    """Text with every sign that means something to LaTeX written such that it means itself."""
    return "".join(SIGNS.get(sign, sign) for sign in text)
