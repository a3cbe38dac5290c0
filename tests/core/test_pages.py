"""Pages: no field that a stranger can set becomes markup, wherever it appears."""

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import segray
from segray import config
from segray.config import EvalConfig
from segray.core.classes import Classes
from segray.core.html import render_page
from segray.data.manifest import Manifest, Shard, Split
from segray.data.validate.dataset import SplitStatistics, ValidationReport
from segray.data.validate.report import render_report
from segray.evaluation.compare import compare
from segray.evaluation.counter import Counts, ImageCounts
from segray.evaluation.evaluate import Evaluation
from segray.evaluation.metrics.calibration import NUM_BINS
from segray.evaluation.report.examples import Example
from segray.evaluation.report.page import Baseline, render_evaluation_page
from segray.evaluation.results import compute_results
from segray.serving.openapi import api_reference
from segray.tune import results
from segray.tune.report.write import write_sweep_report
from segray.tune.trial import State, Trial

SOURCES = Path(segray.__file__).parent


def plant(field):
    """Markup that leaves an element, a tag and both kinds of attribute, and names the field that it is planted in."""
    return f"{field}'\"></i><img src=x onerror=alert(1)><script>alert('{field}')</script>"


class Reader(HTMLParser):
    """The names of all tags, their attributes and the text of a page, as a browser reads them."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_data(self, data):
        self.text += data


def fields_not_shown(page, *names):
    """Returns the fields whose text the page does not show, after a check that none became markup."""
    read = Reader(page)
    assert "script" not in read.tags
    assert not [name for name, _ in read.attributes if name.startswith("on")]
    assert ("src", "x") not in read.attributes
    shown = read.text + " ".join(value for _, value in read.attributes if value)
    return [name for name in names if plant(name) not in shown]


def test_the_page_of_a_dataset():
    shard = Shard(path=plant("shard"), rows=1, bytes=1, row_groups=(1,), digest=plant("shard digest"))
    split = Split(shards=(shard,), class_pixels=(1, 0), mean_height=1, mean_width=1)
    manifest = Manifest(
        format=1,
        classes=Classes.from_names([plant("class"), "b"]),
        splits={plant("split"): split},
        source={"format": plant("format")},
        digest=plant("digest"),
    )
    statistics = SplitStatistics(1, 1, [1, 0], [1, 0], 0)
    report = ValidationReport(manifest, [plant("error")], [plant("warning")], {plant("split"): statistics})
    page = render_report(plant("dataset"), report, plant("sheet"))
    assert fields_not_shown(page, "class", "split", "format", "digest", "error", "warning", "dataset", "sheet") == []


def evaluation():
    classes, tables = Classes.from_names([plant("class"), plant("absent")]), {}
    confusion = np.array([[3, 1], [2, 0]])
    for row in range(2):
        tables[row] = ImageCounts.from_confusion(confusion)
    counts = Counts(2 * confusion, np.zeros((NUM_BINS, 3), np.int64), images=tables)
    ids = {0: plant("image"), 1: "b"}
    slices = {plant("slice"): {0: plant("value"), 1: "b"}}
    found = compute_results(counts, classes.names, ids, slices, num_resamples=20)
    place = {"split": plant("split"), "root": plant("root"), "dataset_digest": plant("digest")}
    return Evaluation(
        counts, found, ids, classes, rows=2, bad_rows=(plant("bad"),), step=7, settings=EvalConfig(), **place
    )


def test_the_page_of_an_evaluation():
    subject = evaluation()
    comparison = compare(subject.counts, subject.counts, subject.classes.names, subject.ids, num_resamples=20)
    picture = np.zeros((4, 4, 3), np.uint8)
    ids = np.zeros((4, 4), np.uint8)
    examples = [Example("worst", image, picture, ids, ids) for image in subject.results.images]
    baseline = Baseline(plant("baseline"), comparison)
    page = render_evaluation_page(plant("model"), subject, examples, {plant("library"): plant("version")}, baseline)
    names = ("model", "split", "root", "class", "absent", "image", "baseline", "slice", "value", "digest", "library")
    assert fields_not_shown(page, *names, "version") == []


def test_the_page_of_a_sweep(tmp_path):
    space = {"optim.lr": {"loguniform": [1e-4, 1e-2]}, "model.init": {"choice": [plant("weights"), "b"]}}
    settings = {"name": "sweep", "data.root": plant("root"), "train.steps": 100, "optim.warmup_steps": 1}
    tune = {"space": space, "trials": 1, "metrics": ["val/miou", f"val/iou/{plant('class')}"]}
    sweep = config.build({**settings, "tune": tune})
    values = {"optim.lr": 1e-3, "model.init": plant("weights")}
    trial = Trial(0, values, State.FAILED, {15: 0.7}, {f"val/iou/{plant('class')}": 0.5}, reason=plant("reason"))
    page = write_sweep_report(sweep, [trial], trial, [], results.sweep_cost([trial], 100, 1), tmp_path / "report")
    assert fields_not_shown(page.read_text(), "root", "weights", "class", "reason") == []


def test_the_pages_of_the_server():
    parameter = {"name": plant("name"), "schema": {"enum": [plant("choice")]}, "description": plant("text")}
    operation = {
        "summary": plant("summary"),
        "parameters": [parameter],
        "requestBody": {"content": {plant("media"): {}}},
        "responses": {"200": {"description": plant("response")}},
    }
    operations = api_reference({"paths": {plant("path"): {"get": operation}}})
    page = render_page(SOURCES / "serving/templates/docs.html", operations=operations)
    assert fields_not_shown(page, "name", "choice", "text", "summary", "media", "response", "path") == []


@pytest.mark.parametrize("template", sorted(SOURCES.rglob("*.html")), ids=lambda path: "/".join(path.parts[-3:]))
def test_no_template_turns_text_into_markup(template):
    text = template.read_text()
    assert not re.findall(r"\|\s*safe\b|autoescape|Markup", text)
    assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|srcdoc", text)
    assert not re.findall(r"=\{\{", text)  # an attribute without quotes ends at a space
    assert not re.findall(r"(?:href|src)=\"\{\{(?! (?:sheet|picture|matrix\.picture) )", text)  # of our own making
    script = "".join(re.findall(r"<script.*?</script>", text, re.DOTALL))
    assert "{{" not in script  # HTML's escapes are not those of JavaScript


def test_all_pages_are_rendered_by_one_escaping_environment():
    for source in SOURCES.rglob("*.py"):
        text = source.read_text()
        assert ("jinja2" in text) == (source == SOURCES / "core/html.py"), source
        assert not re.findall(r"\bMarkup\(|<(?:p|td|tr|li|div|span|h1|a|img)[ >]", text), source
