"""docs/renames.md is true: what it calls old is gone, and what it calls new is there."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIBRARY, BENCHMARKS = ROOT / "platform/segray", ROOT / "benchmarks"
PAGE = (ROOT / "docs/renames.md").read_text()
MODULES = re.findall(r"^\| `([\w/]+)` \| `([\w/]+)` \|$", PAGE, re.M)
ROWS = re.findall(r"^\| `([\w/]+)` \| (`[\w.]+` -> .*) \|$", PAGE, re.M)


def file_of(module):
    root = ROOT if module.split("/")[0] == "benchmarks" else LIBRARY
    file = root / f"{module}.py"
    return file if file.exists() else root / module / "__init__.py"


def names_of(body):
    """The names that statements define."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name))


def members_of(tree, name):
    (found,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    own = [node for node in ast.walk(found) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)]
    return {*names_of(found.body), *(node.attr for node in own if getattr(node.value, "id", "") == "self")}


def test_the_page_lists_all():
    assert len(MODULES) > 150
    assert sum(row.count("->") for _, row in ROWS) > 800


@pytest.mark.parametrize(("old", "new"), MODULES)
def test_a_module_is_where_the_page_says(old, new):
    assert file_of(new).exists()
    taken = {module for _, module in MODULES}
    if old not in taken:
        assert not (LIBRARY / f"{old}.py").exists() or old == "predict"  # the import path of registered versions


@pytest.mark.parametrize(("module", "row"), ROWS)
def test_no_old_name_remains(module, row):
    tree = ast.parse(file_of(module).read_text())
    for old, new in re.findall(r"`([\w.]+)` -> `([\w.]+)`", row):
        owner, _, old_name = old.rpartition(".")
        name = new.rpartition(".")[2]
        found = members_of(tree, owner) if owner else set(names_of(tree.body))
        assert name in found, f"{module}: {new} is not there"
        renewed = {pair[1].rpartition(".")[2] for pair in re.findall(r"`([\w.]+)` -> `([\w.]+)`", row)}
        assert old_name not in found - renewed, f"{module}: {old} is still there"


def test_an_old_import_path_names_the_new_one():
    code = "import segray.losses"
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={"PYTHONPATH": str(ROOT / "platform")}
    )
    assert done.returncode == 1
    assert "segray.losses is now segray.training.losses.build; see docs/renames.md." in done.stderr
