"""The fuzz programme itself: a few inputs of every reader, that inputs repeat, and that the checks can fail."""

import os
import shutil
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from segray.core.errors import DataError

from . import readers, sources
from .reader import Reader, run_input
from .readers import READERS, start_group
from .supervisor import Supervisor
from .worker import make_generator

FAST_INPUTS, SLOW_INPUTS = 9, 40
"""Inputs of each reader."""


def find_findings(folder: Path, names: list[str], count: int) -> tuple[list[str], set[str]]:
    """Runs the first inputs of some readers. Returns the findings, and the statuses that occurred."""
    findings, statuses = [], set()
    for name in names:
        for index in range(count):
            outcome = run_input(READERS[name], make_generator("test", name, index), folder / f"{name}-{index}")
            statuses.add(outcome.status)
            findings += [f"{name}:{index} {outcome.detail}"] * (outcome.status == "finding")
            shutil.rmtree(folder / f"{name}-{index}", ignore_errors=True)
    return findings, statuses


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("count", [FAST_INPUTS, pytest.param(SLOW_INPUTS, marks=pytest.mark.slow)])
@pytest.mark.parametrize("group", ["files", "http"])
def test_readers_accept_or_refuse_every_input(group, count, tmp_path, empty_store):
    names = [name for name, reader in READERS.items() if reader.group == group]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with start_group(group, tmp_path, empty_store):
            findings, statuses = find_findings(tmp_path, names, count * (2 if group == "http" else 1))
    assert not findings, "\n".join(findings)
    assert "accepted" in statuses


def test_a_reader_with_another_error_is_found(tmp_path, monkeypatch):
    def read_class_map(path):
        raise KeyError("name")

    assert not find_findings(tmp_path, ["lists"], 4)[0]
    monkeypatch.setattr(sources, "read_class_map", read_class_map)
    findings, _ = find_findings(tmp_path, ["lists"], 4)
    assert any("KeyError" in finding and "read_class_map" in finding for finding in findings)


CHILD = """
import os, sys, time
print("{}", flush=True)
for line in sys.stdin:
    if CASE == "computes":
        while True: pass
    elif CASE == "waits":
        time.sleep(100)
    elif CASE == "fails":
        sys.exit(1)
    elif CASE == "aborts":
        os.abort()
    elif CASE == "is slow":
        time.sleep(1.5)
    print('{"status": "accepted", "detail": "", "cpu_s": 0.0, "wall_s": 1.5}', flush=True)
"""


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("computes", "hang over"),
        ("waits", "hang over"),
        ("fails", "the worker itself failed"),
        ("aborts", "crash: exit code -6"),
        ("is slow", ""),
    ],
)
def test_the_limits_count_processor_time_and_a_generous_wall_time(case, expected, tmp_path, monkeypatch):
    class Fake(Supervisor):
        def command(self, group):
            return [sys.executable, "-c", f"CASE = {case!r}\n{CHILD}"]

    monkeypatch.setitem(readers.READERS, "lists", replace(READERS["lists"], limit_s=0.5))
    with Fake(tmp_path / "run", 0, wall_limit_s=4.0) as supervisor:
        result = supervisor.run("lists", 0)
    assert result.detail.startswith(expected)
    assert result.status == ("finding" if expected else "accepted")
    assert (result.wall_s < 4) == (case != "waits")


@pytest.mark.parametrize("name", ["image", "coco-stuff", "weights", "settings", "run", "http"])
def test_a_seed_repeats_an_input(name, tmp_path):
    trees = []
    for attempt in range(2):
        seen = []
        files = Reader(
            READERS[name].files,
            lambda _draw, source, _target, seen=seen: seen.append(tree(source)),
            mutations=READERS[name].mutations,
        )
        for index in range(3):
            run_input(files, make_generator(0, name, index), tmp_path / "input")
        trees.append(seen)
        assert len(seen) == 3, attempt
    assert trees[0] == trees[1]
    assert len(set(map(str, trees[0]))) == 3


def tree(source: Path) -> dict[str, bytes]:
    return {str(path.relative_to(source)): path.read_bytes() for path in sorted(source.rglob("*")) if path.is_file()}


def break_a_rule(rule: str, source: Path, target: Path) -> None:
    outside = source.parent / "outside"
    rules = {
        "writes outside the target": lambda: (outside / "new").write_text("x"),
        "leaves a temporary file": lambda: (source.parent / "tmp" / "left").write_text("x"),
        "changes the source": lambda: (source / "a.txt").write_text("y"),
        "reads outside the source": (outside / "secret.txt").read_text,
        "starts a command": lambda: os.system("true"),
        "raises another exception": lambda: {}["key"],
        "names no file": lambda: fail("it is damaged"),
        "has several lines": lambda: fail(f"{source / 'a.txt'} is damaged\n1 validation error"),
        "has no message": lambda: fail(""),
    }
    rules[rule]()
    (target / "out").write_text("x")


def fail(message: str) -> None:
    raise DataError(message)


RULES = ("writes outside the target", "leaves a temporary file", "changes the source", "reads outside the source")
RULES += ("starts a command", "raises another exception", "names no file", "has several lines", "has no message")


@pytest.mark.parametrize("rule", RULES)
def test_a_reader_that_breaks_a_rule_is_a_finding(rule, tmp_path):
    reader = Reader(
        lambda _: {"a.txt": "x"}, lambda _draw, source, target: break_a_rule(rule, source, target), has_tree=False
    )
    assert run_input(reader, Random(0), tmp_path / "input").status == "finding"


def test_a_reader_that_keeps_the_rules_is_none(tmp_path):
    def read(_draw: Random, source: Path, target: Path) -> None:
        (target / "out").write_bytes((source / "a.txt").read_bytes())

    reader = Reader(lambda _: {"a.txt": "x"}, read, has_tree=False)
    assert run_input(reader, Random(0), tmp_path / "input").status == "accepted"
    refusing = Reader(
        lambda _: {"a.txt": "x"}, lambda _draw, source, _t: fail(f"{source / 'a.txt'} is damaged."), has_tree=False
    )
    assert run_input(refusing, Random(0), tmp_path / "input").status == "rejected"
