"""The report on the published results in a browser: at a desk, on a phone, by day, by night, by keyboard."""

import json
import re
from html import unescape
from pathlib import Path

import pytest

import flashlla.experiments
from flashlla import cli
from flashlla.experiments.common import registry
from flashlla.experiments.common.report import Section, render

pytestmark = [pytest.mark.xdist_group("report"), pytest.mark.timeout(900)]  # fifty figures are drawn
PACKAGES = Path(next(iter(flashlla.experiments.__path__)))
BENCHMARKS = Path(__file__).parents[2] / "bench" / "results"
KINDS = ("accuracy", "cpu", "finetuning", "gpu", "training")
OUTCOMES = ("supported", "not supported", "inconclusive", "not tested")
SIZES = {
    "desk": {"viewport": {"width": 1280, "height": 800}},
    "phone": {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "device_scale_factor": 2},
}
LOOKS = Path(__file__).with_name("looks.js").read_text()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    assert cli.main(["report", "--out", str(path)]) == 0
    return path


def contrast(*colors):
    """Of two colours in CSS, as the guidelines for accessible pages define it."""

    def luminance(color):
        parts = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    dark, light = sorted(map(luminance, colors))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_the_report_is_readable_and_asks_for_nothing(browser, report, size, scheme):
    page, requests, said = browser.new_page(**SIZES[size], color_scheme=scheme), [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(report.as_uri())
    assert requests == [report.as_uri()] and not said

    page.evaluate(LOOKS)
    width = SIZES[size]["viewport"]["width"]
    assert page.evaluate("[document.documentElement.scrollWidth, innerWidth]") == [width, width]
    assert page.evaluate("obstacles()") == {}
    for color, ground in page.evaluate("words()"):
        assert contrast(color, ground) > 4.5, f"text in {color} on {ground}"
    figures = page.evaluate("figures()")
    drawn = [figure for figure in figures if figure["section"] in registry.names()]
    assert len(drawn) == len(list(PACKAGES.glob("*/results/small/*.png"))) > 0
    assert len(figures) - len(drawn) > len(list(BENCHMARKS.glob("*/accuracy.json"))) > 0
    for figure in figures:
        name = figure["section"]
        assert figure["width"] > 200 and figure["height"] > 100 and figure["words"] > 5, name
        assert figure["letters"] > 9, f"in pixels: a figure of {name} is shown too small"
        assert contrast(figure["ink"], figure["ground"]) > 4.5, name
        for color in figure["lines"]:
            assert contrast(color, figure["ground"]) > 3, f"a line in {color} of {name}"
    page.close()


def test_a_keyboard_is_enough(browser, report):
    page = browser.new_page(**SIZES["desk"])
    page.goto(report.as_uri())
    page.evaluate(LOOKS)
    page.keyboard.press("Tab")
    first = page.evaluate("focus()")
    assert first["name"] == "skip" and first["seen"], "the first stop is the way past the contents"
    page.keyboard.press("Tab")
    assert page.evaluate("focus()")["href"] == f"#{registry.names()[0]}"
    for what in ("nav a", "main .scroll", "summary"):
        page.locator(what).first.focus()
        assert page.evaluate("focus()")["outline"] >= 2, f"{what} does not show that it has the focus"
    page.keyboard.press("Enter")
    assert page.locator("details").first.get_attribute("open") is not None
    page.locator(".skip").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.querySelector('main').contains(document.activeElement)")
    page.close()


def test_the_tally_counts_the_claims_that_are_listed(report):
    text = report.read_text()
    tally = dict(re.findall(r'<dt class="[^"]*">([^<]+)</dt><dd>(\d+)</dd>', text))
    listed = re.findall(r'<li><span class="[^"]*">([^<]+)</span>', text)
    assert {outcome: int(count) for outcome, count in tally.items()} == {o: listed.count(o) for o in OUTCOMES}
    assert len(listed) == sum(len(registry.load(name).claims) for name in registry.names())


def test_every_experiment_is_there(report):
    text = report.read_text()
    for name in registry.names():
        section = text[text.index(f'<section id="{name}"') :].partition("</section>")[0]
        done = (PACKAGES / name / "results" / "small" / "table.parquet").exists()
        assert ("No results yet" in section) is not done and ("<svg" in section) is done
        assert f'href="#{name}"' in text


def test_what_has_no_results_says_so_and_its_claims_are_not_tested():
    experiment = registry.load("associative_recall")
    text = render([Section(experiment, None, "flashlla run")])
    assert "No results yet" in text and "lie in <code>bench/results</code>" in text
    assert f"not tested</dt><dd>{len(experiment.claims)}</dd>" in text


def test_every_benchmark_is_there_with_its_numbers(report):
    text = unescape(report.read_text())
    found = [path for path in BENCHMARKS.glob("*/*.json") if path.stem in KINDS]
    assert found
    for path in found:
        assert f'<section id="{path.parent.name}-{path.stem}"' in text
        for row in json.loads(path.read_text()).get("rows", []):
            number = f"{row['measured']:.0f}" if row["measured"] >= 1000 else f"{row['measured']:.3g}"
            assert f'<th scope="row">{row["name"]}</th><td>{number}{row["unit"]}</td>' in text


def test_a_damaged_benchmark_is_named_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(registry, "names", lambda: [])
    path = tmp_path / "machine" / "cpu.json"
    path.parent.mkdir()
    path.write_text('{"rows": []}')
    assert cli.main(["report", "--bench", str(tmp_path), "--out", str(tmp_path / "report.html")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{path} does not hold what bench/ writes there" in line
