"""Tables fit into a terminal of 80 columns."""

import io

import numpy as np
from rich.console import Console

from segray.cli.tables import _class_table
from segray.evaluation.metrics.bootstrap import Interval
from segray.evaluation.metrics.scores import scores_from_confusion

NAMES = ("sky", "building", "vegetation", "unused")
CONFUSION = np.array([[100, 0, 0, 0], [0, 60, 20, 0], [0, 30, 10, 0], [0, 0, 0, 0]])


def test_the_bars_of_the_classes_are_as_long_as_the_scores_and_not_cut_off():
    scores = scores_from_confusion(CONFUSION, NAMES)
    file = io.StringIO()
    intervals = {name: Interval(0.1, 0.9) for name in NAMES}
    Console(file=file, width=80, soft_wrap=True).print(_class_table(scores, intervals))
    lines = {name: line for line in file.getvalue().splitlines() for name in NAMES if line.startswith(name)}
    lengths = {name: line.count("█") for name, line in lines.items()}
    assert "…" not in file.getvalue()
    assert max(map(len, lines.values())) <= 80
    assert lengths["sky"] > 20
    for name in NAMES[:3]:
        assert abs(lengths[name] - scores.iou[name] * lengths["sky"]) <= 1
    assert "absent" in lines["unused"]
