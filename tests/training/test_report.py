import builtins
import dataclasses
import json
import math
import re
from html.parser import HTMLParser

import pytest
from tiny_training import Config

from jaxseq.training import JsonLinesWriter, PageTable, Run, write_report, write_tables
from jaxseq.training.defaults import changed_settings


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


class Elements(HTMLParser):
    """The start tags with their attributes, and the texts in elements of a tag."""

    def __init__(self, page):
        super().__init__()
        self.open, self.starts, self.texts = [], [], {}
        self.feed(page)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.starts.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "wbr"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        for tag in self.open:
            self.texts.setdefault(tag, []).append(data)

    def attributes(self, tag, name):
        return [attributes.get(name) for start, attributes in self.starts if start == tag]


def test_hashes_and_signatures_are_in_the_environment_and_not_in_the_cards(run):
    digest = "d606ced5810ba2d93bd2f661c72a229b"
    results = {"exact_match": 0.5, "done": True, "loss": math.nan, "held_out_pairs": 1000, "core": "lstm"}
    results |= {"text_sha256": digest, "bleu_signature": "nrefs:1|tok:13a", "weights": digest}
    run.write_results(results)
    page = write_report(run).read_text()
    cards = "".join(Elements(page).texts["dl"])
    assert all(text in cards for text in ("0.5", "yes", "nan", "1,000", "held out pairs"))
    assert not any(text in cards for text in (digest, "nrefs", "lstm", "sha256"))
    environment = page[page.index("<h2>Environment") :]
    assert environment.count(digest) == 2 and "nrefs:1|tok:13a" in environment and "lstm" not in environment
    assert page.index('<td class="value">lstm</td>') < page.index("<h2>Training")


def test_tables_have_scopes_figures_say_what_they_show_and_the_page_is_dark_where_it_is_asked(run):
    page = write_report(run).read_text()
    found = Elements(page)
    assert all(scope in ("row", "col") for scope in found.attributes("th", "scope"))
    assert len(found.attributes("th", "scope")) > 20 and "row" in found.attributes("th", "scope")
    loss, *others = found.attributes("img", "alt")
    assert loss == (
        "Loss, nats per token against tokens seen: training, as logged 4.054 to 1.22; training, running mean of 3 "
        "log lines 4.054 to 1.22."
    )
    assert all(" to " in alt for alt in others)
    assert "@media (prefers-color-scheme: dark)" in page
    assert re.search(r"\nfigure \{[^}]*background: #fff", page), "figures are drawn on white"


def test_settings_that_differ_from_the_defaults_are_marked_with_the_default(tmp_path):
    made, default = [], Config()
    train, optimizer = (
        dataclasses.replace(default.train, steps=7),
        dataclasses.replace(default.optimizer, clip_norm=3.0),
    )
    for index, config in enumerate((default, Config(train=train, optimizer=optimizer))):
        with Run.open(tmp_path / f"{index}", config, fingerprint="abc") as run:
            made.append(write_report(run).read_text().replace("<wbr>", ""))
    usual, changed = made
    assert "0 of " in usual and 'class="changed"' not in usual
    rows = re.findall(
        r'<tr class="changed"><th scope="row">(.*?)</th>\s*<td class="value">(.*?)</td><td class="default">(.*?)</td>',
        changed,
    )
    assert rows == [("optimizer.clip_norm", "3", "0.5"), ("train.steps", "7", "20")]
    assert "2 of " in changed


@dataclasses.dataclass(frozen=True)
class One:
    size: int = 1


@dataclasses.dataclass(frozen=True)
class Two:
    size: int = 2
    depth: int | None = None


@dataclasses.dataclass(frozen=True)
class Parts:
    name: str
    part: One | Two = One()
    steps: int | None = None
    options: dict = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if self.steps is None:
            object.__setattr__(self, "steps", 10 * self.part.size)


def test_changed_settings_are_those_with_another_value_than_the_default():
    assert changed_settings(Config()) == {}
    assert changed_settings(Parts("a", steps=3)) == {"steps": None}
    assert changed_settings(Parts("a", Two(depth=4), None, {"b": 1})) == {
        "part.kind": "One", "part.depth": None, "steps": None, "options": {},
    }  # fmt: skip
    named = dataclasses.make_dataclass("Named", [("name", str, "b")], bases=(Parts,), frozen=True)
    assert changed_settings(named("b")) == {} and changed_settings(named("c", Two())) == {
        "name": "b", "part.kind": "One", "steps": 10,
    }  # fmt: skip


def test_a_page_of_tables_shows_hostile_texts_as_texts(tmp_path):
    figure = tmp_path / "figure.png"
    figure.write_bytes(b"\x89PNG")
    table = PageTable(ATTACK, ("run", ATTACK), ((ATTACK, "1"), ("b", ATTACK)), ATTACK)
    page = write_tables(tmp_path / "a.html", ATTACK, [table], figures={ATTACK: figure}, notes=[ATTACK]).read_text()
    links = read(page)
    assert not {"script", "i"} & set(links.tags) and "onerror" not in links.attributes and len(links.found) == 1
    assert all(scope in ("row", "col") for scope in Elements(page).attributes("th", "scope"))


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
