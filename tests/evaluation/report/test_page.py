"""The page: every figure in it made of the counts, nothing fetched from a network, no error in a browser."""

import base64
import io
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from segray.config import EvalConfig
from segray.core.classes import Classes
from segray.core.errors import DataError
from segray.core.report_folder import check_report_folder
from segray.evaluation.compare import compare
from segray.evaluation.counter import Counts, ImageCounts
from segray.evaluation.evaluate import Evaluation, EvaluationRequest, evaluate
from segray.evaluation.metrics.bootstrap import bootstrap, miou, percentile_interval
from segray.evaluation.metrics.calibration import NUM_BINS, calibration_bins
from segray.evaluation.metrics.confusion import confusion_matrix
from segray.evaluation.metrics.scores import iou as iou_of
from segray.evaluation.metrics.scores import scores_from_confusion
from segray.evaluation.report.examples import Example, error_overlay, select_examples
from segray.evaluation.report.page import Baseline, render_evaluation_page
from segray.evaluation.report.write import write_report
from segray.evaluation.results import ImageScore, compute_results

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
IMAGES, HEIGHT, WIDTH = 9, 12, 16
DASH = " \u2013 "
FIGURES = ("classes", "confusion", "images", "examples", "reliability", "slices")


def counted(num_classes, seed):
    """The counts of random masks, of which the predictions are often right; the last class is absent."""
    random, truths = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(7)
    counts = Counts(np.zeros((num_classes, num_classes), np.int64), np.zeros((NUM_BINS, 3), np.int64))
    for row in range(IMAGES):
        truth = torch.randint(0, num_classes - 1, (HEIGHT, WIDTH), generator=truths).to(torch.int32)
        guess = torch.randint(0, num_classes - 1, (HEIGHT, WIDTH), generator=random).to(torch.int32)
        found = torch.where(torch.rand(HEIGHT, WIDTH, generator=random) < 0.3 + row / 20, truth, guess)
        truth[0] = 65535
        own = confusion_matrix(found, truth, num_classes, 65535).numpy()
        sure = torch.rand(HEIGHT, WIDTH, generator=random)
        counts.bins += calibration_bins(found, sure, truth, 65535).numpy()
        counts.confusion += own
        counts.images[row] = ImageCounts.from_confusion(own)
    return counts


def evaluation(num_classes=4, seed=0):
    counts = counted(num_classes, seed)
    classes = Classes.from_names([f"<class> {number}" for number in range(num_classes)])
    ids = {row: f"val/image & {row}" for row in range(IMAGES)}
    slices = {"city": {row: "Ulm" if row < 4 else "Aachen" for row in ids}}
    found = compute_results(counts, classes.names, ids, slices, num_resamples=200)
    return Evaluation(counts, found, ids, classes, "val", IMAGES, ("row 3: why",), "/data", "d1", 7, EvalConfig())


def shown(one):
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    ids = random.integers(0, one.classes.num_classes, (HEIGHT, WIDTH)).astype(np.uint16)
    return [Example(kind, score, image, ids, ids[::-1].copy()) for kind, score in select_examples(one.results.images)]


class Page(HTMLParser):
    """The texts and attributes of elements that bear data, and all places that something is fetched from."""

    def __init__(self, text):
        super().__init__()
        self.found, self.starts, self.places, self._open = {}, [], [], []
        self.styles, self.rows, self._class, self._table = {}, {}, None, None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        self.starts.append(named)
        self._class = named.get("data-class", self._class)
        if tag == "table":
            self._table = self.rows.setdefault(named.get("id"), {})
        if tag in ("i", "u") and self._class is not None:
            style = dict(part.split(":") for part in named["style"].split(";"))
            self.styles.setdefault(self._class, []).append(style)
        self.places += [named[name] for name in ("src", "href") if name in named]
        if tag in ("meta", "link", "img", "br"):
            self._keep(named, None)
            return
        self._open.append((named, []))

    def handle_data(self, text):
        for _, texts in self._open:
            if text.strip():
                texts.append(text.strip())

    def handle_endtag(self, tag):
        named, texts = self._open.pop()
        self._keep(named, texts)
        if tag == "tr" and self._table is not None and texts:
            self._table[len(self._table)] = texts
        if tag == "table":
            self._class = None

    def _keep(self, named, texts):
        for name, value in named.items():
            if name.startswith("data-") or name == "id":
                self.found.setdefault((name.removeprefix("data-"), value), []).append((named, texts))

    def text(self, name, value):
        ((_, texts),) = self.found[name, value]
        return texts

    def attributes(self, name):
        return [named for named in self.starts if f"data-{name}" in named]


@pytest.fixture(scope="module")
def one():
    return evaluation()


@pytest.fixture(scope="module")
def page(one):
    other = counted(4, seed=1)
    against = Baseline("the other", compare(one.counts, other, one.classes.names, one.ids, num_resamples=200))
    return Page(render_evaluation_page("models:/x@y", one, shown(one), {"torch": "2"}, against)), against.comparison


def ious(matrix):
    right, union = np.diag(matrix), matrix.sum(0) + matrix.sum(1) - np.diag(matrix)
    return [None if not both else hit / both for hit, both in zip(right, union, strict=True)]


def test_the_headline_is_of_the_counts(page, one):
    found = [iou for iou in ious(one.counts.confusion) if iou is not None]
    assert page[0].text("id", "miou") == [f"{sum(found) / len(found):.4f}"]
    assert page[0].text("score", "aacc") == [
        f"{np.trace(one.counts.confusion) / one.counts.confusion.sum():.4f}",
    ]
    right, sure, total = (one.counts.bins[:, index].astype(float) for index in (1, 2, 0))
    filled = total > 0
    gaps = np.abs(right[filled] - sure[filled] / 2**16) / total.sum()
    assert page[0].text("score", "ece") == [f"{gaps.sum():.4f}"]
    tables = np.stack([one.counts.images[row].dense(4) for row in range(IMAGES)])
    interval_ = percentile_interval(bootstrap(tables, miou, 200))
    assert page[0].text("id", "miou-interval")[0].split(DASH) == [f"{end:.4f}" for end in interval_]
    said = scores_from_confusion(one.counts.confusion, one.classes.names)
    for name in ("macc", "mdice", "mprecision", "fwiou", "kappa"):
        assert page[0].text("score", name) == [f"{getattr(said, name):.4f}"]


def test_each_class_is_of_the_counts(page, one):
    matrix = one.counts.confusion
    tables = np.stack([one.counts.images[row].dense(4) for row in range(IMAGES)])
    for index, iou in enumerate(ious(matrix)):
        texts = page[0].text("class", f"<class> {index}")
        low, high = percentile_interval(bootstrap(tables, lambda table, at=index: iou_of(table)[:, at], 200))
        if iou is None:
            assert texts[1] == DASH.strip()
            continue
        precision, recall = matrix[index, index] / matrix[:, index].sum(), matrix[index, index] / matrix[index].sum()
        assert texts[1:3] == [f"{iou:.4f}", f"{low:.3f}{DASH}{high:.3f}"]
        bar, whiskers = page[0].styles[f"<class> {index}"]
        assert bar["width"] == f"{100 * iou:.2f}%"
        assert (whiskers["left"], whiskers["width"]) == (f"{100 * low:.2f}%", f"{100 * (high - low):.2f}%")
        dice = 2 * matrix[index, index] / (matrix[:, index].sum() + matrix[index].sum())
        assert texts[3:] == [
            f"{dice:.4f}",
            f"{precision:.4f}",
            f"{recall:.4f}",
            f"{matrix[index].sum() / matrix.sum():.1%}",
        ]


def test_the_matrices_are_of_the_counts(page, one):
    counts = one.counts.confusion
    for number, axis in enumerate((1, 0)):
        shares = counts / np.maximum(counts.sum(axis, keepdims=True), 1)
        for row in range(4):
            for column in range(4):
                ((named, texts),) = page[0].found["cell", f"{number}/{row}/{column}"]
                assert named["title"].endswith(f": {100 * shares[row, column]:.1f}%")
                expected = f"{100 * shares[row, column]:.0f}" if shares[row, column] >= 0.005 else None
                assert texts == ([expected] if expected else [])


def test_the_largest_confusions_and_the_worst_images_are_those_of_the_counts(page, one):
    wrong = one.counts.confusion * (1 - np.eye(4, dtype=np.int64))
    rows = [texts for _, texts in sorted(page[0].rows["confused"].items())][1:]
    pairs = sorted(((int(wrong[row, column]), row, column) for row in range(3) for column in range(3)), reverse=True)[
        :6
    ]
    assert sorted(int(texts[3].replace(",", "")) for texts in rows) == sorted(pixels for pixels, *_ in pairs)
    for true, found, share, pixels in rows:
        row, column = int(true[-1]), int(found[-1])
        assert int(pixels.replace(",", "")) == wrong[row, column]
        assert share == f"{100 * wrong[row, column] / one.counts.confusion[row].sum():.1f}%"
    worst = [texts for _, texts in sorted(page[0].rows["worst"].items())][1:]
    means = []
    for row, image in one.counts.images.items():
        table = image.dense(4)
        union = table[:, 1] + table[:, 2] - table[:, 0]
        means.append(((table[:, 0] / np.maximum(union, 1))[union > 0].mean(), row))
    assert [texts[0] for texts in worst] == [f"val/image & {row}" for _, row in sorted(means)]
    assert [texts[1] for texts in worst] == [f"{value:.4f}" for value, _ in sorted(means)]


def test_the_reliability_is_of_the_counts(page, one):
    bins = one.counts.bins
    filled = bins[bins[:, 0] > 0]
    drawn = page[0].attributes("accuracy")
    assert [float(named["data-accuracy"]) for named in drawn] == pytest.approx((filled[:, 1] / filled[:, 0]).tolist())
    assert [float(named["data-share"]) for named in drawn] == pytest.approx((filled[:, 0] / bins[:, 0].sum()).tolist())
    assert [float(named["height"]) for named in drawn] == pytest.approx(
        (220 * filled[:, 1] / filled[:, 0]).tolist(), abs=0.01
    )


def test_the_histogram_and_the_slices_are_of_the_images(page, one):
    means = []
    for image in one.counts.images.values():
        table = image.dense(4)
        union = table[:, 1] + table[:, 2] - table[:, 0]
        means.append((table[:, 0] / np.maximum(union, 1))[union > 0].mean())
    counts = [int(named["data-count"]) for named in page[0].attributes("count")]
    assert counts == np.histogram(means, 20, (0, 1))[0].tolist()
    for city, rows in (("Ulm", range(4)), ("Aachen", range(4, IMAGES))):
        table = sum(one.counts.images[row].dense(4) for row in rows)
        union = table[:, 1] + table[:, 2] - table[:, 0]
        miou = (table[:, 0] / np.maximum(union, 1))[union > 0].mean()
        assert page[0].text("slice", f"city/{city}") == [
            city,
            f"{miou:.4f}",
            f"{table[:, 0].sum() / table[:, 1].sum():.4f}",
            f"{table[:, 1].sum():,}",
        ]


def test_the_comparison_is_the_one_that_was_made(page):
    parsed, comparison = page
    assert parsed.text("id", "verdict") == [comparison.summary_line("this model", "the other") + "."]
    for name, gain in comparison.iou.items():
        texts = parsed.text("gain", name)
        if gain.delta == gain.delta:
            assert texts == [name, f"{gain.candidate:.4f}", f"{gain.baseline:.4f}", f"{gain.delta:+.4f}"]


def test_nothing_is_fetched_and_nothing_runs(page, one):
    text = render_evaluation_page("m", one, shown(one), {})
    assert "<script" not in text
    assert "http" not in re.sub(r"data:[^\"]*", "", text)
    assert all(place.startswith("data:") for place in page[0].places)
    assert "<class>" not in text  # names are text, not tags


def test_many_classes_are_a_picture():
    many = evaluation(num_classes=70)
    parsed = Page(render_evaluation_page("m", many, shown(many), {}))
    assert not parsed.attributes("cell")
    assert sum(place.startswith("data:image/png") for place in parsed.places) >= 2


def test_examples_are_each_image_once_worst_first():
    def kinds(count):
        scores = [ImageScore(row, str(row), row / 10, 0) for row in range(count)]
        return [(kind, score.row) for kind, score in select_examples(scores, 2)]

    assert kinds(9) == [("worst", 0), ("worst", 1), ("median", 3), ("median", 4), ("best", 7), ("best", 8)]
    assert kinds(3) == [("worst", 0), ("worst", 1), ("best", 2)]
    assert kinds(1) == [("worst", 0)]
    assert kinds(0) == []


def test_errors_are_red_and_what_is_not_counted_white():
    ids, truth = np.zeros((2, 2), np.uint8), np.array([[0, 1], [255, 0]], np.uint8)
    drawn = error_overlay(Example("worst", None, np.full((2, 2, 3), 100, np.uint8), truth, ids), 255)
    assert drawn[1, 0].tolist() == [255, 255, 255]
    assert drawn[0, 1, 0] > 180 > drawn[0, 1, 1] * 2
    assert drawn[0, 0].tolist() == [110, 110, 110]


def console(page):
    """What a browser says on its console, and the page as it stands after it was drawn."""
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0", "--dump-dom"]
    done = subprocess.run([CHROMIUM, *flags, page.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    return [line for line in done.stderr.splitlines() if "CONSOLE" in line], done.stdout


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium; tests/debian-packages.sh installs it")
def test_a_browser_shows_the_whole_report_without_an_error(folder, streets, tmp_path):
    overrides = {"calibration": True, "boundary": (3,), "trimap": (3,)}
    found = evaluate(folder, EvaluationRequest(str(streets), "val", overrides=overrides, slices={"size": None}))
    written = write_report("the model", found, folder, tmp_path / "report")
    said, dom = console(written.page)
    assert said == []
    parsed = Page(dom)
    assert parsed.text("id", "miou") == [f"{found.results.scores.miou:.4f}"]
    assert parsed.text("boundary", "3") == [f"{found.results.boundary[3].miou:.4f}"]
    assert len(re.findall(r'<div class="example">', dom)) == 7
    figures = {path.name: Image.open(path) for path in written.figures}
    assert set(figures) == {f"{name}.png" for name in FIGURES}
    sizes = {
        name: (min(figure.size), len(figure.convert("RGB").getcolors(1 << 24))) for name, figure in figures.items()
    }
    assert all(side > 150 and colours > 20 for side, colours in sizes.values()), sizes
    pictures = [place for place in parsed.places if place.startswith("data:image")]
    assert len(pictures) == 4 * 7
    assert all(Image.open(io.BytesIO(base64.b64decode(one.partition(",")[2]))).size[0] == 420 for one in pictures)
    with pytest.raises(DataError, match="is not empty; choose another folder"):
        check_report_folder(tmp_path)
    check_report_folder(tmp_path / "report")  # a report may be made anew
    broken = tmp_path / "broken.html"
    broken.write_text("<script>console.error('no')</script>")
    assert len(console(broken)[0]) == 1  # the eye is open


def test_a_folder_that_cannot_be_written_is_told(folder, streets, tmp_path):
    found = replace(evaluation(), root=str(streets))
    found = replace(found, results=replace(found.results, images=()))
    (tmp_path / "report").write_text("a file")
    with pytest.raises(DataError, match=r"report \S+/report cannot be written"):
        write_report("m", found, folder, tmp_path / "report")
