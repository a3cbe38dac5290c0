"""`predict.py` as a user types it: one image, many, a video; killed; and with what it refuses."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from benchmarks.memory_monitor import monitor_memory
from segray.cli import main as cli

SCRIPT = Path(__file__).parents[2] / "pipelines" / "predict.py"


def command(folder, source, out, *words):
    return list(map(str, [sys.executable, SCRIPT, "--model", folder, "--source", source, "--out", out, *words]))


@pytest.fixture
def environment(ray_cluster):
    return os.environ | {"RAY_ADDRESS": ray_cluster, "RAY_AUTH_MODE": "disabled"}


def run(words, environment):
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300, check=False)


def draw(root, count, size=(48, 64)):
    root.mkdir()
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(pixels).save(root / f"{number:04d}.jpg")
    return root


def files(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_one_image_needs_no_cluster_and_may_be_segmented_again(folder, tmp_path):
    source = draw(tmp_path / "images", 1) / "0000.jpg"
    nowhere = os.environ | {"RAY_ADDRESS": "127.0.0.1:1"}
    for _ in range(2):
        done = run(command(folder, source, tmp_path / "out", "--overlay"), nowhere)
        assert done.returncode == 0, done.stderr
        assert sorted(files(tmp_path / "out")) == ["masks/0000.png", "overlays/0000.jpg"]
    assert done.stdout.splitlines()[-1] == f"masks  {tmp_path}/out"


@pytest.mark.slow
def test_a_video_with_settings_of_ones_own(folder, tmp_path, environment):
    writer = cv2.VideoWriter(str(tmp_path / "street.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    for number in range(20):
        writer.write(np.full((48, 64, 3), number * 10, np.uint8))
    writer.release()
    words = ["--eval.mode", "slide", "--eval.crop", "32", "--eval.stride", "32", "--workers", "1"]
    done = run(command(folder, tmp_path / "street.avi", tmp_path / "out", *words), environment)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "out/masks").iterdir())[19] == "frame-000019.png"
    assert "20 images in" in done.stdout


@pytest.mark.slow
def test_an_image_that_cannot_be_read_ends_with_1(folder, tmp_path, environment):
    source = draw(tmp_path / "images", 2)
    (source / "0001.jpg").write_bytes(b"none")
    done = run(command(folder, source, tmp_path / "out", "--workers", "1"), environment)
    assert done.returncode == 1
    assert done.stderr.startswith("error: 1 image could not be segmented:\n  0001: the file cannot")
    assert (tmp_path / "out/masks/0000.png").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--workers", "0"], "--workers is 0; expected at least 1"),
        (["--format", "gif"], "invalid choice: 'gif'"),
        (["--out", "images/masks"], "contain each other"),
        (["--source", "nowhere"], "nowhere does not exist"),
        (["--model", "nowhere"], "checkpoint nowhere is not a folder"),
        (["--split", "val"], "is not a prepared dataset"),
        (["--eval.crop", "33"], "expected a multiple of 32"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_2(folder, tmp_path, words, said, monkeypatch, capsys):
    draw(tmp_path / "images", 2)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", command(folder, "images", "out", *words)[1:])
    with pytest.raises(SystemExit) as ended:
        cli.run("predict")
    assert ended.value.code == 2
    found = capsys.readouterr().err
    assert said in found
    assert found.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("after", [1, 4, 9])
def test_a_job_killed_half_way_ends_as_if_nothing_had_happened(folder, tmp_path, after):
    source = draw(tmp_path / "images", 200, (240, 320))
    alone = os.environ | {"RAY_AUTH_MODE": "disabled"}
    alone.pop("RAY_ADDRESS", None)
    whole = run(command(folder, source, tmp_path / "whole", "--overlay"), alone)
    assert whole.returncode == 0, whole.stderr
    process = subprocess.Popen(command(folder, source, tmp_path / "out", "--overlay"), env=alone)
    records = tmp_path / "out/.unfinished/done"
    while not records.exists() or len(list(records.glob("*.json"))) < after:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    kept = len(list(records.glob("*.json")))
    assert kept < 13
    again = run(command(folder, source, tmp_path / "out", "--overlay"), alone)
    assert again.returncode == 0, again.stderr
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    assert len(files(tmp_path / "out")) == 401


@pytest.mark.slow
def test_memory_does_not_grow_with_the_images(folder, tmp_path):
    alone = os.environ | {"RAY_AUTH_MODE": "disabled"}
    alone.pop("RAY_ADDRESS", None)
    peaks = []
    for count in (500, 5000):
        source = draw(tmp_path / f"images{count}", count, (96, 128))
        process = subprocess.Popen(command(folder, source, tmp_path / f"out{count}", "--quiet"), env=alone)
        with monitor_memory(process.pid) as peak:
            assert process.wait() == 0
        assert len(list((tmp_path / f"out{count}/masks").iterdir())) == count
        peaks.append(peak.memory)
    print([f"{peak / 2**20:.0f} MiB" for peak in peaks])
    assert peaks[1] < peaks[0] * 1.1
