"""`ray job submit`, the documented command and the bare one, to the registry."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import end, head_shell, start_head

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """A head with segray installed, the repository as its working directory, and SEGRAY_CONFIG, like an image of it."""
    folder = tmp_path_factory.mktemp("c")
    (folder / "segray.yaml").touch()
    shell = head_shell(folder, SEGRAY_CONFIG=str(folder / "segray.yaml"))
    found = start_head(folder, shell, "--num-cpus", 2, "--object-store-memory", 200_000_000)
    yield found
    end(found.process, 5)


def finished(head, *words, how=None):
    """What a job said, and what it ended with."""
    job = head.submit(*words, how=how)
    said, _ = job.communicate(timeout=300)
    return said, job.returncode


PLATFORM = "import platform, uuid; print('platform is', platform.__file__); platform.system()"
LOAD = """
import numpy as np
from segray import Predictor
predictor = Predictor("models:/segray@challenger", tracking_uri="sqlite:///{place}/mlflow.db")
print(predictor(np.zeros((96, 96, 3), np.uint8)).shape)
"""


def test_the_job_succeeds_and_another_shell_loads_what_it_registered(head, streets, tmp_path):
    train = ["python", "pipelines/train.py", "--config", "pipelines/configs/demo.yaml"]
    train += ["--data.root", streets, "--results", tmp_path / "results"]
    train += ["--data.crop", 32, "--train.steps", 2, "--train.batch", 2, "--optim.warmup_steps", 1]
    look = shlex.join(["python", "-c", PLATFORM])
    said, code = finished(head, "bash", "-c", f"{look} && {shlex.join(map(str, train))}")
    assert code == 0, said
    assert "succeeded" in said
    assert "val mIoU" in said
    imported = said.split("platform is")[-1].splitlines()[0]
    assert imported.endswith("platform.py")
    assert "_ray_pkg_" not in imported
    code = LOAD.format(place=tmp_path)
    loaded = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "(96, 96)" in loaded.stdout, loaded.stderr


def test_the_bare_command_trains_with_the_settings_of_the_cluster(head, streets, tmp_path):
    places = {
        "results": str(tmp_path / "results"),
        "data": {"root": str(streets), "crop": 32},
        "train": {"steps": 2, "batch": 2},
        "optim": {"warmup_steps": 1},
    }
    settings = Path(head.shell["SEGRAY_CONFIG"])
    settings.write_text(json.dumps(places))  # JSON is YAML
    said, code = finished(head, "python", "pipelines/train.py", how=())
    settings.write_text("")
    assert code == 0, said
    assert "val mIoU" in said
    assert len(list((tmp_path / "results").iterdir())) == 1
