"""docs/renames.md is true: what it calls old is gone, and the modules that it calls new are there."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from segray.core.imports import MOVED

ROOT = Path(__file__).parents[1]
LIBRARY, BENCHMARKS = ROOT / "platform/segray", ROOT / "benchmarks"
PAGE = (ROOT / "docs/renames.md").read_text()
MODULES = re.findall(r"^\| `([\w/]+)` \| `([\w/]+)` \|$", PAGE, re.M)
ROWS = re.findall(r"^\| `[\w/]+` \| (`[\w.]+` -> .*) \|$", PAGE, re.M)
RENAMED = [pair for row in ROWS for pair in re.findall(r"`([\w.]+)` -> `([\w.]+)`", row)]
STANDARD = {
    *("build", "class_weights", "dice", "first_line", "load", "rollback", "run"),
    *("Case", "Check", "Predictor", "Progress", "Record", "Result", "Rows", "State"),
    *("FORMAT", "FORMATS", "MASK", "NAME", "PARTS", "SPLIT", "STATE", "WIDTH"),
}
"""Old names that are standard terms and have their usual meaning in another module."""


def file_of(module):
    root = ROOT if module.split("/")[0] == "benchmarks" else LIBRARY
    file = root / f"{module}.py"
    return file if file.exists() else root / module / "__init__.py"


def defined_names(file):
    """The functions, classes and constants that a module defines."""
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name))


def test_the_page_lists_all():
    assert len(MODULES) > 150
    assert len(RENAMED) > 800


def test_modules_are_where_the_page_says():
    assert [new for _, new in MODULES if not file_of(new).exists()] == []
    kept = {new for _, new in MODULES} | {"predict"}  # the import path of registered versions
    assert [old for old, _ in MODULES if old not in kept and (LIBRARY / f"{old}.py").exists()] == []


def test_no_old_name_remains():
    current = {new.rpartition(".")[2] for _, new in RENAMED}
    old = {name for name, _ in RENAMED if "." not in name} - current - STANDARD
    assert len(old) > 600
    files = [*LIBRARY.rglob("*.py"), *BENCHMARKS.rglob("*.py")]
    remaining = [f"{file.relative_to(ROOT)}: {name}" for file in files for name in defined_names(file) if name in old]
    assert remaining == []


@pytest.mark.parametrize("module", ["segray.losses", "segray.benchmark"])
def test_an_old_import_path_names_the_new_one(module):
    command = [sys.executable, "-c", f"import {module}"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={"PYTHONPATH": str(ROOT / "platform")}
    )
    assert done.returncode == 1
    assert f"{module} is now {MOVED[module]}; see docs/renames.md." in done.stderr
    assert "segray.training.losses.build" in MOVED["segray.losses"]
