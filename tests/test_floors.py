"""Every module stands on a floor: the layers contract names it, or a package it is in."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_no_module_stands_beside_the_floors():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    named = {name.strip() for layer in contracts[0]["layers"] for name in layer.split("|")}
    modules = [path.relative_to(ROOT / "platform") for path in (ROOT / "platform/segray").rglob("*.py")]
    names = [".".join(module.with_suffix("").parts).removesuffix(".__init__") for module in modules]
    homeless = [name for name in names if not any(f"{name}.".startswith(f"{floor}.") for floor in named)]
    assert sorted(homeless) == [
        "segray",
        "segray.analysis",
        "segray.benchmark",
        "segray.data",
        "segray.predictions",
        "segray.promotion",
        "segray.serving",
        "segray.tune",
    ]  # folders only
