"""Tables for a manuscript."""

from __future__ import annotations

import re

from ctcovid.reports.latex import escaped, latex
from ctcovid.reports.tables import Table


def test_a_table_has_a_column_for_each_heading_and_bold_where_it_is_said() -> None:
    table = Table(
        ("model", "Accuracy"), [["a_b", "0.9 (0.8, 1.0)"], ["c", 0.5]], "Results", notes=["mean ± s.d., p < 5 %"], bold=frozenset({(0, 1)})
    )
    text = latex(table)
    assert r"\begin{tabular}{lr} \toprule" in text and r"\caption{Results. mean $\pm$ s.d., p $<$ 5 \%}" in text
    assert r"a\_b & \textbf{0.9 (0.8, 1.0)} \\" in text and r"c & 0.5000 \\" in text
    assert {line.count("&") for line in text.splitlines() if line.endswith(r"\\")} == {1}


def test_no_sign_keeps_a_meaning_in_latex() -> None:
    written = escaped("50% of $x_1 & {y} # ~ ^ \\")
    bare = re.sub(r"\\(textbackslash|textasciitilde|textasciicircum)\{\}|\\[&%$#_{}]", "", written)
    assert re.findall(r"[&%$#_{}~^\\]", bare) == []
