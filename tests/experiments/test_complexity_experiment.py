"""The complexity experiment as a user runs it, and what it refuses."""

import re

import pytest
from compilation import unoptimized

from experiments.complexity import Config, main
from jaxseq.training import read_json


def test_a_smoke_run_writes_rows_exponents_crossings_and_figures(tmp_path, capsys):
    config = Config(run=tmp_path / "run", smoke=True)
    with unoptimized():
        results = main(config)
    assert read_json(config.run / "results.json") == results
    assert results["attention_mixing_flops_n"] == pytest.approx(2)
    assert results["recurrence_elman_mixing_flops_d"] == pytest.approx(2) and results["recurrence_elman_products"] == 32
    rows = read_json(config.run / "complexity.json")
    assert {row["path"] for row in rows["paths"] if row["kind"] == "attention"} == {1}
    assert len(rows["crossings"]) == 2 and all(row["seconds"] > 0 for row in rows["times"])
    shown = capsys.readouterr().out
    assert "| attention | n² d | n^2.00 d^1.00 |" in shown and "timed: n=16 d=8" in shown
    if (config.run / "figures").exists():
        assert len(list((config.run / "figures").glob("complexity-*.png"))) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lengths": (64,)}, r"lengths=(64,) must be 2 different positive sizes at least"),
        ({"widths": (64, 32)}, r"widths=(64, 32) must be"),
        ({"lengths": (64, 100)}, r"lengths=(64, 100) must be multiples of the window 32"),
        ({"path_lengths": (8, 20)}, r"path_lengths=(8, 20) must be multiples of the window 8"),
        ({"kernel": 1}, "kernel=1 (2)"),
        ({"seconds": 0.0}, "seconds=0.0"),
    ],
)
def test_what_cannot_be_measured_is_refused(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Config(**options)
