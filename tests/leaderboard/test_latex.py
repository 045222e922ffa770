"""A tabular that LaTeX takes: a small grammar stands in for TeX."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from tests.leaderboard.factory import board, record
from vlbench.errors import UserError
from vlbench.leaderboard import filters as select
from vlbench.leaderboard.export import table_text
from vlbench.leaderboard.latex import ALIGNED, escaped, latex
from vlbench.leaderboard.rows import rows
from vlbench.records.record import write_record

COMMANDS = {
    *(
        "toprule",
        "midrule",
        "bottomrule",
        "multicolumn",
        "textit",
        "textbf",
        "begin",
        "end",
        "pm",
        ",",
        "textbackslash",
    ),
    *(
        "footnotesize",
        "dagger",
        "textasciitilde",
        "textasciicircum",
        "textless",
        "textgreater",
        "textbar",
        "textquotedbl",
        "Delta",
    ),
    *"&%$#_{}",
}
ODD = r'a_b & 50% $x$ #1 {y} ~z^2 \input{/etc} <i> | "q" [h] *' + "\nnew\rline"


def check(text: str) -> list[list[str]]:
    """The cells of each line of the tabulars. Fails where TeX would."""
    body = re.sub(r"(?m)^%.*\n?", "", text)
    assert text.isprintable() or "\n" in text
    assert re.findall(r"\\begin\{tabular\}\{(\w+)\}", body) == [ALIGNED] * body.count("\\end{tabular}")
    lines = []
    for line in body.splitlines():
        for command in re.findall(r"\\([A-Za-z]+|\\|.)", line):
            assert command in COMMANDS | {"\\"}, command
        plain = re.sub(r"\\(?:[A-Za-z]+|.)", "", line.removesuffix(r" \\"))
        depth = 0
        for c in plain:
            depth += {"{": 1, "}": -1}.get(c, 0)
            assert depth >= 0
        assert depth == 0
        assert plain.count("$") % 2 == 0
        plain = plain.replace("$^$", "")  # a mark of a row, whose letters were taken out above
        assert not set(plain) & set('#_^~%<>|"'), plain
        if line.endswith(r" \\") and "multicolumn" not in line:
            cells = re.split(r"(?<!\\)&", line.removesuffix(r" \\"))
            assert len(cells) == len(ALIGNED), line
            assert not cells[0].lstrip().startswith(("[", "*")), "behind a line's end they are its arguments"
            lines.append([cell.strip() for cell in cells])
    return lines


def test_every_row_is_a_line():
    found = check(latex(rows(board())))
    assert found[0][:5] == ["Method", "Sparsity", "Parameters", "MACs", "accuracy"]
    assert [line[0] for line in found[1:]] == [
        " ".join(filter(None, (r.method, r.options))) + (r"$^\dagger$" if r.flags else "") for r in rows(board())
    ]


def test_mean_and_spread_over_seeds():
    row = next(r for r in rows(board()) if r.method == "upop")
    (_, line) = check(latex([row]))
    assert line[4] == rf"{row.value:.2f} $\pm$ {row.spread:.2f}"
    assert line[6].startswith("$-$")
    assert line[7] == "3"


def test_the_best_of_a_pattern_at_one_sparsity_is_bold():
    found = {line[0]: line[4] for line in check(latex(rows(board())))}
    bold = {name for name, value in found.items() if "textbf" in value}
    assert bold == {"upop", "wanda calibration=128"} or bold == {"upop", "wanda calibration=64"}
    wanda = {name: float(re.sub(r"[^\d.]", "", value)) for name, value in found.items() if "wanda" in name}
    assert max(wanda, key=wanda.__getitem__) in bold


def test_lower_may_be_better_and_ties_are_both_bold():
    pair = [
        replace(rows([record("a", sparsity=0.5)])[0], value=v, config=str(v), method=m)
        for v, m in ((1.0, "x"), (2.0, "y"))
    ]
    assert [("textbf" in line[4]) for line in check(latex(pair, higher=lambda row: False))[1:]] == [True, False]
    tied = [pair[0], replace(pair[1], value=1.001)]
    assert [("textbf" in line[4]) for line in check(latex(tied))[1:]] == [True, True]


@pytest.mark.parametrize(
    "change", [{"options": ODD}, {"method": ODD}, {"model": ODD}, {"metric": ODD}, {"pattern": ODD}]
)
def test_odd_characters_are_escaped(change):
    row = replace(rows([record("wanda", sparsity=0.5)])[0], **change)
    assert len(check(latex([row, replace(row, config="other")]))) == 3


def test_escaped_brackets_and_stars_are_no_arguments():
    assert escaped("[x]*") == "{[}x]{*}"
    assert escaped("a\tb\x00c") == "a b c"


def test_a_flag_goes_where_its_row_goes():
    """In a paper, too: a contaminated row is marked, and the table's last line says so."""
    flagged = rows([record("wanda", sparsity=0.5, flags=["contaminated", "parity: top1 78.10, published 79.8"])])[0]
    text = latex([flagged, rows([record("obd", sparsity=0.5)])[0]])
    (_, one, two) = check(text)
    assert (one[0], two[0]) == (r"wanda$^\dagger$", "obd")
    assert r"\footnotesize $^\dagger$ wanda: contaminated; parity: top1 78.10, published 79.8} \\" in text


def test_what_is_not_measured_is_a_dash():
    row = rows([record("wanda", sparsity=0.5, macs=None, macs_dense=None, vs_dense=None, values=[1.0, 0.0])])[0]
    (_, line) = check(latex([row]))
    assert (line[3], line[5], line[6]) == ("--", "--", "--")
    assert latex([]) == ""


def test_table_takes_words_and_formats(tmp_path, monkeypatch):
    for r in [*board(), *(r.model_copy(update={"cell": f"x{r.cell}", "task": "nlvr2"}) for r in board()[:3])]:
        write_record(tmp_path / "results" / f"{r.cell}.json", r)
    monkeypatch.setattr(select, "boards_folder", lambda: tmp_path)
    told = {form: table_text({"format": form, "task": "vqav2"}, tmp_path)[0] for form in ("latex", "markdown", "csv")}
    assert len(check(told["latex"])) == len(told["csv"].splitlines()) == len(rows(board())) + 1
    assert told["markdown"].startswith("# vqav2, suite mini")
    assert "do not edit" not in told["markdown"]
    assert table_text({}, tmp_path)[0].count("\n# ") == 1
    assert table_text({}, tmp_path)[1] == []
    for words, why in (({"format": "html"}, "format=html is not known"), ({"method": "wand"}, "Did you mean 'wanda'")):
        with pytest.raises(UserError, match=why):
            table_text(words, tmp_path)
