"""The experiment on truncated back-propagation: a smoke run, and what it refuses."""

import json

import pytest
from compilation import unoptimized

from experiments.truncation import Config, Echo, Text, main
from jaxseq.models.configs import LanguageModelConfig

MODEL = LanguageModelConfig(core="elman", dropout=0.0)


def test_a_smoke_run_measures_every_mode_and_writes_its_folder(tmp_path):
    with unoptimized():
        results = main(Config(run=tmp_path / "run", model=MODEL, smoke=True))
    files = {str(file.relative_to(tmp_path / "run")) for file in (tmp_path / "run").rglob("*.*")}
    assert {"losses.json", "bias.json", "report.html", "figures/truncation-bias.png", "results.json"} <= files
    for mode in ("zero", "carry", "recompute"):
        assert 0 < results[f"loss_{mode}_2"] < 3 and results[f"microseconds_per_token_{mode}_2"] > 0
        assert results[f"cosine_{mode}_2"] == pytest.approx(1, abs=1e-5)  # the whole sequence: no cut
        assert results[f"norm_ratio_{mode}_2"] == pytest.approx(1, abs=1e-5)
    assert results["carry_growth_at_8_times_the_length"] == 1
    rows = json.loads((tmp_path / "run" / "losses.json").read_text())
    assert [(row["mode"], row["updates"], row["recomputed_chunks"]) for row in rows] == [
        ("full", 4, 0),
        ("zero", 8, 0),
        ("carry", 8, 0),
        ("recompute", 8, 1),
    ]


@pytest.mark.full
def test_text_one_update_per_sequence_and_attention(tmp_path, text_file):
    model = LanguageModelConfig(core="attention", dropout=0.0)
    with unoptimized():
        results = main(Config(run=tmp_path / "run", task=Text(text_file), model=model, updates="sequence", smoke=True))
    assert results["loss_carry_2"] == pytest.approx(results["loss_recompute_2"], abs=1e-5)
    assert results["carry_growth_at_8_times_the_length"] > 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cuts": (8, 5)}, r"cuts=\[5\] must be divisors of length=64"),
        ({"moments": (0.0, 1.5)}, r"moments=\(0.0, 1.5\)"),
        ({"model": LanguageModelConfig(dropout=0.1)}, "dropout=0.1"),
        ({"task": Echo(lag=64)}, "lag=64 must be in 1..63"),
        ({"batches": 0}, "batches must be at least 1"),
        ({"bias_length": 1}, "bias_length must be at least 2"),
    ],
)
def test_settings_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**options)
