"""docs/errata.md: the numbers of each entry show what it states, and those that the page quotes are true."""

import functools
import re
from pathlib import Path

import jax
import pytest
from compilation import unoptimized

from experiments import errata
from experiments.errata import Config
from jaxseq.pipelines.errata import ERRATA
from jaxseq.training import read_json

FULL = pytest.mark.full
DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "errata.md").read_text(encoding="utf-8")
QUICK = ("E10", "E15", "E17", "E18")
"""The entries that compile little."""
ROUNDING = 1e-10
COMPUTE = dict(ERRATA)

CLAIMS = {
    "E1": lambda n: n["error_of_common_form"] > n["gradient_norm"] > 0.1 and n["error_of_full_form"] < 1e-14,
    "E2": lambda n: n["error_lag_8"] > n["error_lag_4"] > 0.5 and n["error_lag_1"] < ROUNDING > n["ordered_error"],
    "E3": lambda n: n["error_lag_8"] > n["error_lag_2"] > 0.01 and n["error_lag_1"] < ROUNDING > n["joint_error"],
    "E4": lambda n: (
        n["error_from_l_at_lag_4"] > 0.5 < n["error_shifted_at_lag_4"] and n["error_from_l_plus_1"] < ROUNDING
    ),
    "E5": lambda n: (
        n["spectral_radius"] < 1 < n["largest_singular_value"] and n["peak_norm"] > 10 > n["norm_at_lag_60"] * 50
    ),
    "E6": lambda n: n["norm_with_forget_bias_minus_2"] < 1e-6 and n["norm_with_10_times_the_recurrent_matrix"] > 1e6,
    "E7": lambda n: 9 < n["longest_wavelength_base_10000"] / n["longest_wavelength_base_1000"] < 10,
    "E8": lambda n: n["outputs"] == n["decoder_positions"] != n["outputs_if_the_encoder_gave_queries"],
    "E9": lambda n: n["zeros_before"] == 0 and abs(n["mean_square_before"] - 1) < 1e-5 and n["zeros_after"] > 0.4,
    "E10": lambda n: n["change_per_token"] == 0 and n["change_over_the_sequence"] > 0.1,
    "E11": lambda n: n["positions_that_see_the_last"] == 5 and n["causal_weight_on_the_future"] == 0,
    "E12": lambda n: n["parameters"] == 400 and n["tokens_without_a_row_if_the_length_is_given"] == 43,
    "E13": lambda n: n["error_of_sum_over_heads"] < ROUNDING and n["error_of_concatenated_matrices"] > 0.1,
    "E14": lambda n: n["width_by_a_linear_rule"] < 0 < n["width_by_exp"] and n["detections_after_nms"] == 1,
    "E15": lambda n: n["ratio_at_n_equal_d_over_8"] < 1 == n["ratio_at_n_equal_d"] < n["ratio_at_n_equal_8_d"],
    "E16": lambda n: n["variance_uncorrelated"] > 10 * n["variance_independent"] and n["largest_covariance"] < 0.03,
    "E17": lambda n: n["scored"] == 60 and n["same_choice_from_the_best_of_each_beam"] == 1,
    "E18": lambda n: n["weights_3x3"] == 9 * n["weights_1x1"] == 9 * 64 * 32,
}
"""What the numbers of each entry must satisfy, by their names without that of the entry."""


@functools.cache
def computed(entry: str) -> dict[str, float]:
    """The numbers of an entry, computed once."""
    with jax.enable_x64(True), unoptimized():
        return COMPUTE[entry]()


def section(entry: str) -> str:
    """The page's text on an entry."""
    return PAGE.split(f"\n### {entry}. ")[1].split("\n#")[0]


@pytest.mark.parametrize("entry", [entry if entry in QUICK else pytest.param(entry, marks=FULL) for entry in ERRATA])
def test_the_numbers_of_an_entry_show_what_it_states(entry):
    numbers = computed(entry)
    prefix = f"{entry.lower()}_"
    assert all(name.startswith(prefix) for name in numbers)
    assert CLAIMS[entry]({name.removeprefix(prefix): value for name, value in numbers.items()}), numbers
    quoted = re.findall(r"`(e\d+_\w+) ([=<]) ([^`]+)`", section(entry))
    assert sorted(name for name, _, _ in quoted) == sorted(numbers), "each number is quoted once"
    for name, sign, text in quoted:
        if sign == "<":
            assert abs(numbers[name]) < float(text), name
        else:
            assert numbers[name] == pytest.approx(float(text), rel=6e-3, abs=1e-12), name


def test_every_entry_is_on_the_page_with_what_is_written_and_what_is_true():
    assert sorted(re.findall(r"\n### (E\d+)\. ", PAGE)) == sorted(ERRATA) == sorted(f"E{n}" for n in range(1, 19))
    for entry in ERRATA:
        assert section(entry).count("*Commonly written:*") == section(entry).count("*True") == 1, entry


def test_the_figures_and_tests_that_the_page_names_exist():
    figures = re.findall(r"\]\((gallery/[\w-]+\.png)\)", PAGE)
    assert len(figures) == 7
    for figure in figures:
        assert 10_000 < (DOCS / figure).stat().st_size < 120_000, figure
    for file in set(re.findall(r"`(tests/[\w/]+\.py)", PAGE)):
        assert (DOCS.parent / file).is_file(), file


@FULL
def test_the_experiment_writes_all_numbers_and_figures(tmp_path, monkeypatch):
    for entry in ERRATA:  # what was computed for the tests above is not computed again
        monkeypatch.setitem(ERRATA, entry, functools.partial(computed, entry))
    with unoptimized():
        numbers = errata.main(Config(tmp_path / "run"))
    groups = read_json(tmp_path / "run/errata.json")
    assert list(groups) == list(ERRATA)
    assert {name: value for group in groups.values() for name, value in group.items()} == numbers
    assert read_json(tmp_path / "run/results.json") == numbers
    drawn = {path.name for path in (tmp_path / "run/figures").iterdir()}
    assert drawn == set(re.findall(r"gallery/(errata-\w+\.png)", PAGE))
    assert (tmp_path / "run/report.html").is_file()
