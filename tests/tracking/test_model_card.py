"""The card of a version says what it is of, how good it is and how surely, and what it is not for."""

from dataclasses import replace
from math import nan

import pytest
from markdown_it import MarkdownIt

from segray import config
from segray.core.classes import Classes
from segray.evaluation.metrics.bootstrap import Interval
from segray.models.checkpoint import Meta
from segray.tracking.model_card import MAX_CLASSES, CardData, SplitScores, render_card, validation_scores

CLASSES = Classes.from_names(["road", "car", "a|b"])
CONFIG = config.build({"model.variant": "b2", "data.crop": 256, "optim.lr": "3e-4", "data.short_side": 480})
METRICS = {"val/miou": 0.5, "val/macc": 0.6, "val/aacc": 0.75, "val/iou/road": 0.625, "val/iou/car": 0.375}
META = Meta(step=4000, metrics=METRICS, dataset_digest="d1g", versions={"torch": "2.13"})
TEST = SplitScores(
    split="test",
    digest="t3st",
    means={"miou": 0.25, "macc": 0.5, "aacc": 0.625},
    interval=Interval(0.125, 0.375),
    classes={"road": 0.3, "car": None, "a|b": 0.2},
    intervals={"road": Interval(0.2, 0.4), "a|b": Interval(nan, nan)},
    rows=40,
)


@pytest.fixture
def facts():
    return CardData(
        "streets", CONFIG, CLASSES, META, "run-7", "camvid", "abc123", [validation_scores(META, CONFIG, CLASSES)]
    )


def test_it_says_what_the_version_is_of(facts):
    card = render_card(facts)
    assert card.startswith("# streets\n\nSemantic segmentation with SegFormer-B2: ")
    for said in (
        "one of 3 classes",
        "split `train` of `camvid`, digest `d1g`",
        "step 4000 of",
        "256 px",
        "learning rate 0.0003",
    ):
        assert said in card
    for said in ("| run | run-7 |", "| commit | abc123 |", "short side of 480 px", "torch 2.13", "cross_entropy x 1"):
        assert said in card


def test_figures_stand_with_their_intervals_and_without_where_none_was_counted(facts):
    card = render_card(replace(facts, scores=[*facts.scores, TEST]))
    assert "| val |  | 0.5000 | - | 0.6000 | 0.7500 | `d1g` |" in card
    assert "| test | 40 | 0.2500 | [0.1250, 0.3750] | 0.5000 | 0.6250 | `t3st` |" in card
    assert "| IoU | val | test |" in card
    assert "| road | 0.6250 | 0.3000 [0.2000, 0.4000] |" in card
    assert "| car | 0.3750 | - |" in card
    assert "| a\\|b | - | 0.2000 |" in card
    assert "Scores without an interval come from the validation" in card


def test_an_interval_of_the_validation_is_told_if_it_was_counted(facts):
    meta = META.model_copy(update={"metrics": METRICS | {"val/miou_low": 0.25, "val/miou_high": 0.75}})
    card = render_card(replace(facts, meta=meta, scores=[validation_scores(meta, CONFIG, CLASSES)]))
    assert "| 0.5000 | [0.2500, 0.7500] |" in card
    assert "without an interval" not in card


def test_limits_name_what_nothing_is_known_of_and_code_of_ones_own(facts):
    assert "The quality is unknown for a|b:" in render_card(facts)
    assert "quality is unknown" not in render_card(replace(facts, scores=[*facts.scores, TEST]))
    own = config.build({"model.head": "mine:Head"})
    assert "Loading requires additional code: mine:Head" in render_card(replace(facts, config=own))


def test_a_card_of_many_classes_fits_where_a_database_keeps_it(facts):
    many = Classes.from_names([f"a class with a long name {number}" for number in range(150)])
    scored = replace(TEST, classes=dict.fromkeys(many.names, 0.3), intervals=dict.fromkeys(many.names, TEST.interval))
    card = render_card(replace(facts, classes=many, scores=[scored, scored]))
    assert f"and {150 - MAX_CLASSES} more" in card
    assert len(card) < 5000


def test_names_that_a_stranger_sets_are_no_markup(facts):
    """Viewers render the HTML in Markdown, but not that in code spans."""
    bad = "<img src=x onerror=alert(1)>`<img src=x>`|\n<script>"
    settings = CONFIG.model_copy(update={"data": CONFIG.data.model_copy(update={"train_split": bad, "val_split": bad})})
    settings = settings.model_copy(
        update={"model": settings.model.model_copy(update={"init": bad, "head": f"a:{bad}"})}
    )
    meta = META.model_copy(update={"dataset_digest": bad, "versions": {bad: bad}})
    classes = Classes.from_names([bad, "b"])
    scores = [SplitScores(bad, bad, {}, None, {}, {}, 1)]
    card = render_card(CardData(bad, settings, classes, meta, bad, bad, bad, scores))
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(card)
    inline = [child for token in tokens for child in token.children or ()]
    assert not [token.content for token in (*tokens, *inline) if token.type in {"html_block", "html_inline"}]
    assert card.count("onerror") >= 10


@pytest.mark.parametrize("text", ["a|<img src=x onerror=alert(1)>|b", "a\r| b |\r\n<b>", "\\|<b>|", "`|`<b>"])
def test_a_digest_in_a_table_stays_in_its_cell(facts, text):
    card = render_card(replace(facts, scores=[replace(TEST, digest=text)]))
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(card)
    row = next(i for i, token in enumerate(tokens) if token.type == "inline" and token.content == "test")
    cells = [token for token in tokens[row:][:21] if token.type == "inline"][:7]
    inline = [child.type for token in tokens for child in token.children or ()]
    assert "html_inline" not in inline
    assert [child.type for child in cells[6].children] == ["code_inline"]
