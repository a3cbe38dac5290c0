"""Report page of a sweep."""

import re

from segray import config
from segray.tune import results
from segray.tune.report.write import write_sweep_report
from segray.tune.trial import State, Trial


def test_the_headline_has_the_best_trial_and_values_are_escaped(tmp_path):
    tune = {"space": {"optim.lr": {"loguniform": [1e-4, 1e-2]}}, "trials": 2}
    sweep_config = config.build({"data.root": "a <b>", "train.steps": 100, "optim.warmup_steps": 1, "tune": tune})
    stopped = Trial(0, {"optim.lr": 1e-3}, State.STOPPED, {15: 0.7}, reason="not among the <best>")
    finished = Trial(1, {"optim.lr": 2e-3}, State.FINISHED, {15: 0.2, 100: 0.65})
    cost = results.sweep_cost([stopped, finished], 100, 1)
    page = write_sweep_report(sweep_config, [stopped, finished], finished, [], cost, tmp_path / "report").read_text()
    assert re.findall(r'id="best">([^<]*)<', page) == ["0.6500"]
    assert re.findall(r'id="best-trial">([^<]*)<', page) == ["1"]
    assert "not among the &lt;best&gt;" in page
    assert "a &lt;b&gt;" in page
