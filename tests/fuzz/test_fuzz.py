"""The fuzz programme itself: a few inputs of every reader, that inputs repeat, and that the checks can fail."""

import os
import shutil
import warnings
from pathlib import Path
from random import Random

import pytest

from segray.core.errors import DataError

from .reader import Reader, run_input
from .readers import READERS, start_group
from .worker import make_generator

pytestmark = pytest.mark.slow  # starts a server and a registry

INPUTS = {"image": 40, "weights": 25, "checkpoint": 20, "dataset": 15, "settings": 25}
PER_READER = 10


@pytest.fixture(scope="module", params=["files", "http"])
def group(request, tmp_path_factory):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with start_group(request.param, tmp_path_factory.mktemp("group")):
            yield request.param


@pytest.mark.filterwarnings("ignore")
def test_readers_accept_or_refuse_every_input(group, tmp_path):
    findings, statuses = [], []
    for name, reader in READERS.items():
        for index in range(INPUTS.get(name, PER_READER) if reader.group == group else 0):
            outcome = run_input(reader, make_generator("test", name, index), tmp_path / f"{name}-{index}")
            statuses.append(outcome.status)
            findings += [f"{name}:{index} {outcome.detail}"] * (outcome.status == "finding")
            shutil.rmtree(tmp_path / f"{name}-{index}", ignore_errors=True)
    assert not findings, "\n".join(findings)
    assert "accepted" in statuses
    assert len(statuses) >= PER_READER


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
