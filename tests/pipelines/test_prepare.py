"""`prepare.py` as a user types it: killed, at once, and with what its flags promise."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segray.data.manifest import read_manifest

SCRIPT = Path(__file__).parents[2] / "pipelines" / "prepare.py"
ROWS = 96


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Pairs that take a while to convert: 8 videos of 12 frames, not split."""
    root = tmp_path_factory.mktemp("frames")
    for side in ("images", "masks"):
        (root / side).mkdir()
    for number in range(ROWS):
        name = f"video{number // 12}_{number % 12:03d}.png"
        blocks = np.random.default_rng(number).integers(0, 256, (120, 160, 3), np.uint8)
        pixels = blocks.repeat(8, 0).repeat(8, 1)  # many to decode, few bytes on the disk
        Image.fromarray(pixels).save(root / "images" / name, compress_level=1)
        Image.fromarray(pixels[..., 0] % 3).save(root / "masks" / name, compress_level=1)
    (root / "classes.txt").write_text("sky\nroad\ncar\n")
    return root


def command(source, out, *words):
    flags = ["--format", "folder", "--source", source, "--out", out, "--split", "0.75/0.25", "--group-by", r"video(\d)"]
    return [sys.executable, *map(str, [SCRIPT, *flags, *words])]


@pytest.fixture
def environment(ray_cluster):
    return os.environ | {"RAY_ADDRESS": ray_cluster, "RAY_AUTH_MODE": "disabled"}


def run(words, environment):
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_frames_of_a_video_stay_together_and_the_check_is_the_next_command(source, environment, tmp_path):
    (tmp_path / "map.yaml").write_text("car: vehicle\nsky: null\n")
    made = run(command(source, tmp_path / "made", "--map", tmp_path / "map.yaml"), environment)
    assert made.returncode == 0, made.stderr
    manifest = read_manifest(str(tmp_path / "made"))
    assert manifest.classes.names == ("road", "vehicle")
    assert {name: split.rows for name, split in manifest.splits.items()} == {"train": 72, "val": 24}
    assert f"next     python pipelines/prepare.py --check {tmp_path}/made" in made.stdout
    words = [sys.executable, SCRIPT, f"--check={tmp_path / 'made'}", "--out", tmp_path / "page"]
    checked = run(list(map(str, words)), environment)
    assert checked.returncode == 0, checked.stderr
    assert checked.stdout.splitlines()[-1] == "no errors"
    assert sorted(path.name for path in (tmp_path / "page").iterdir()) == ["contact-sheet.png", "index.html"]
    next((tmp_path / "made" / "val").iterdir()).unlink()
    checked = run(list(map(str, words)), environment)
    assert checked.returncode == 2
    assert "has 1 errors:" in checked.stderr
    assert "Traceback" not in made.stderr + checked.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--split", "0.9/0.2"], "--split is 0.9/0.2; expected fractions"),
        (["--group-by", "film"], "--group-by film does not match 96 ids"),
        (["--map", "nowhere.yaml"], "map nowhere.yaml cannot be read"),
        (["--max-pixels", "1000"], "96 of 96 samples cannot be used"),
        (["--max-pixels", "999999999"], "--max-pixels is 999999999; expected 1 to 178956970"),
    ],
)
@pytest.mark.slow
def test_mistakes_are_one_message(source, environment, tmp_path, words, said):
    made = run(command(source, tmp_path / "made", *words), environment)
    assert made.returncode == 2
    assert made.stderr.startswith("error: ")
    assert said in made.stderr


def content(out):
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def done(out):
    return len(list(out.rglob("*.parquet.json")))


def killed(words, environment, out, at, rng):
    """Starts a conversion, kills it soon after so many of its shards are done, and returns how many were."""
    process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (out / ".unfinished" / "lock").exists() or done(out) < at:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(rng.random() / 20)
    process.kill()
    process.wait()
    assert not (out / "dataset.json").exists()
    return done(out)


@pytest.mark.slow
def test_conversions_killed_at_ten_moments_are_the_one_that_was_not(source, environment, tmp_path):
    assert run(command(source, tmp_path / "whole"), environment).returncode == 0
    theirs = content(tmp_path / "whole")
    manifest = json.loads(theirs.pop("dataset.json"))
    rng, kills = random.Random(5), []
    for number in range(5):
        out = tmp_path / str(number)
        for at in (rng.randrange(3), rng.randrange(3, 6)):
            kills.append(killed(command(source, out), environment, out, at, rng))
        assert run(command(source, out), environment).returncode == 0
        ours = content(out)
        assert json.loads(ours.pop("dataset.json"))["digest"] == manifest["digest"]
        assert ours == theirs
    print(f"shards that were done when it was killed, of {len(theirs)}: {kills}")


WORKERS = """
import sys
import ray
from segray.cli.main import run
ray.init(address="local", num_cpus=int(sys.argv.pop(1)), log_to_driver=False)
run("prepare")
"""


@pytest.mark.slow
def test_one_two_and_four_workers_make_the_same(source, tmp_path):
    alone = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    for workers in (1, 2, 4):
        words = command(source, tmp_path / str(workers))
        done = run([sys.executable, "-c", WORKERS, str(workers), *words[2:]], alone)
        assert done.returncode == 0, done.stderr
    one, *others = (content(tmp_path / str(workers)) for workers in (1, 2, 4))
    manifest = json.loads(one.pop("dataset.json"))
    for other in others:
        assert json.loads(other.pop("dataset.json"))["digest"] == manifest["digest"]
        assert other == one


@pytest.mark.slow
def test_ctrl_c_is_said_and_the_same_command_goes_on(source, environment, tmp_path):
    out = tmp_path / "made"
    process = subprocess.Popen(command(source, out), env=environment, stdout=-1, stderr=-1, text=True)
    while not list(out.rglob("*.parquet.json")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(2)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.splitlines()[-1] == "interrupted."
    done = run(command(source, out), environment)
    assert done.returncode == 0
    assert read_manifest(str(out)).splits["val"].rows == 24
