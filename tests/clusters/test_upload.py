"""What `ray job submit --working-dir . --runtime-env clusters/runtime-env.yaml` uploads."""

from zipfile import ZipFile

import pytest
import yaml
from ray._private.runtime_env.packaging import create_package

from .conftest import ROOT

EXCLUDES = yaml.safe_load((ROOT / "clusters/runtime-env.yaml").read_text())["excludes"]
PRIVATE = [".env", ".env.local", "clusters/key.pem", "me.key", ".pgpass", ".netrc"]
LARGE = [
    "data/demo/a.parquet",
    "results/run/x",
    ".venv/bin/python",
    ".git/config",
    "mlflow.db",
    ".mypy_cache/a",
    "build/a",
]
NEEDED = ["pipelines/train.py", "platform/segray/data/schema.py", "clusters/aws.yaml", "pipelines/configs/demo.yaml"]


@pytest.fixture
def uploaded(tmp_path):
    """The names of what is uploaded of a folder with all of these."""
    folder = tmp_path / "repository"
    for name in (*PRIVATE, *LARGE, *NEEDED):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    package = tmp_path / "package.zip"
    create_package(str(folder), package, include_gitignore=True, excludes=EXCLUDES)
    with ZipFile(package) as found:
        return {name for name in found.namelist() if not name.endswith("/")}


def test_the_private_and_the_large_stay_and_the_code_goes(uploaded):
    assert uploaded == set(NEEDED)
