"""The report on the published results in a browser: at a desk and on a phone, by day and by night."""

import re
from pathlib import Path

import pytest

import flashlla.experiments
from flashlla import cli
from flashlla.experiments.common import registry

pytestmark = pytest.mark.xdist_group("report")
PACKAGES = Path(next(iter(flashlla.experiments.__path__)))
SIZES = {
    "desk": {"viewport": {"width": 1280, "height": 800}},
    "phone": {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "device_scale_factor": 2},
}
FIGURES = """() => [...document.querySelectorAll("figure svg")].map(svg => {
  const box = svg.getBoundingClientRect(), words = [...svg.querySelectorAll("text")];
  const scale = matrix => Math.hypot(matrix.a, matrix.b);
  const letters = words.map(t => parseFloat(getComputedStyle(t).fontSize) * scale(t.getScreenCTM()));
  const ground = getComputedStyle(svg.closest("figure")).backgroundColor;
  return {width: box.width, height: box.height, words: words.length, letters: Math.min(...letters),
          ink: getComputedStyle(words[0]).fill, ground};
})"""


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

    width = SIZES[size]["viewport"]["width"]
    assert page.evaluate("[document.documentElement.scrollWidth, innerWidth]") == [width, width]
    figures = page.evaluate(FIGURES)
    assert len(figures) == len(list(PACKAGES.glob("*/results/small/*.png"))) > 0
    for figure in figures:
        assert figure["width"] > 200 and figure["height"] > 100 and figure["words"] > 5
        assert figure["letters"] > 9, "in pixels: a figure is shown too small"
        assert contrast(figure["ink"], figure["ground"]) > 4.5
    page.close()


def test_every_experiment_is_there_and_one_without_results_says_so(report):
    text = report.read_text()
    for name in registry.names():
        section = text[text.index(f'<section id="{name}"') :].partition("</section>")[0]
        done = (PACKAGES / name / "results" / "small" / "table.parquet").exists()
        assert ("No results yet" in section) is not done and ("<svg" in section) is done
        assert f'href="#{name}"' in text
