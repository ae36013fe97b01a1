import builtins
import dataclasses
import json
import math
import re
from html.parser import HTMLParser

import pytest
from tiny_training import Config

from jaxseq.training import JsonLinesWriter, Run, write_report


@pytest.fixture
def run(tmp_path):
    with Run.open(tmp_path / "run", Config(), fingerprint="abc") as run:
        lines = JsonLinesWriter(run.metrics)
        for step in range(10, 1010, 10):
            row = {"tokens": step * 512, "loss": 1.2 + 3 * math.exp(-step / 200), "train_seconds": step / 4}
            row |= {"learning_rate": 0.01 * (1 - step / 1010), "gradient_norm": 0.2 + math.sin(step) ** 2}
            lines.write(step, row)
        run.write_results({"bits_per_character": 1.8512345, "core": "<lstm>"})
        run.write("parameters.json", [{"name": "a/kernel", "shape": [2, 3], "dtype": "float32", "size": 6}])
        yield run


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found, self.tags, self.attributes = [], [], set()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.update(name for name, _ in attrs)
        self.found += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]


def read(page):
    links = Links()
    links.feed(page)
    return links


def test_the_report_is_one_file_that_needs_nothing_else(run):
    page = write_report(run, samples=["once"]).read_text()
    links = read(page)
    assert len(links.found) == 3 and all(link.startswith("data:image/png;base64,") for link in links.found)
    assert not {"script", "link", "iframe"} & set(links.tags)
    assert not re.search(r"https?:|url\(|@import", page)
    assert sorted(p.name for p in (run.path / "figures").iterdir()) == [
        "gradient_norm.png",
        "learning_rate.png",
        "loss.png",
    ]


def test_it_shows_results_config_environment_parameters_and_samples(run):
    page = write_report(run, title="A title", samples={"greedy": "\nthe cat\nsat"}).read_text()
    page = page.replace("<wbr>", "")
    for part in [
        "A title",
        "1.8512",
        "train.steps",
        "optimizer.clip_norm",
        "versions.jax",
        "a/kernel",
        "2 × 3",
    ]:
        assert part in page
    assert "<pre>\n\nthe cat\nsat</pre>" in page and "<h3>greedy</h3>" in page


ATTACK = '</pre><script>alert(1)</script><img src="x" onerror="alert(2)"> & {{ 7 * 7 }} "q" \'r\''


def test_nothing_that_is_shown_becomes_markup(tmp_path, run):
    config = dataclasses.make_dataclass("Attack", ["options"])({ATTACK: ATTACK})
    figure = tmp_path / "figure.png"
    figure.write_bytes(b"\x89PNG")
    with Run.open(tmp_path / "attack", config, fingerprint="abc") as attacked:
        attacked.write_results({ATTACK: ATTACK})
        attacked.write("parameters.json", [{"name": ATTACK, "shape": [2], "dtype": ATTACK, "size": 6}])
        shown = {"title": ATTACK, "samples": {ATTACK: ATTACK}, "figures": {ATTACK: figure}}
        page = write_report(attacked, **shown).read_text()
    links = read(page)
    assert not {"script", "i"} & set(links.tags) and links.tags.count("img") == len(links.found) == 1
    assert "onerror" not in links.attributes
    text = (
        "&lt;/pre&gt;&lt;script&gt;alert(1)&lt;/script&gt;&lt;img src=&#34;x&#34; onerror=&#34;alert(2)&#34;&gt; &amp; "
    )
    text += "{{ 7 * 7 }} &#34;q&#34; &#39;r&#39;"
    assert page.count(f"<pre>\n{text}</pre>") == 1 and f'alt="{text}"' in page
    assert page.count(text) == 12
    assert "&lt;lstm&gt;" in write_report(run, samples=[ATTACK]).read_text()


def test_a_run_without_metrics_still_has_a_report(tmp_path):
    with Run.open(tmp_path, Config(), fingerprint="abc") as run:
        page = write_report(run).read_text()
    assert "train.<wbr>steps" in page and not read(page).found


def test_without_matplotlib_there_is_a_note_and_no_figure(run, monkeypatch, capsys):
    real = builtins.__import__

    def without(name, *arguments, **options):
        if name.startswith(("matplotlib", "jaxseq.plotting.training_curves")):
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    page = write_report(run).read_text()
    assert "jaxseq[plots]" in page and "jaxseq[plots]" in capsys.readouterr().out
    assert "train.<wbr>steps" in page and not read(page).found


def test_rows_that_are_not_finite_are_left_out_of_the_figures(run):
    JsonLinesWriter(run.metrics).write(2000, {"tokens": 99, "loss": math.nan, "gradient_norm": math.inf})
    assert len(read(write_report(run).read_text()).found) == 3
    assert json.loads(run.metrics.read_text().splitlines()[-1])["loss"] is None
