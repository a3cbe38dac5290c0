"""Checkpoints of a run: complete or absent, retention, and writing in the background."""

import os
import shutil
import threading
from hashlib import sha256
from pathlib import Path
from time import monotonic

import pytest

from segray.core.errors import CheckpointError, TrainingError
from segray.models import checkpoint
from segray.training import checkpoint_store
from segray.training.checkpoint_store import (
    CheckpointInfo,
    CheckpointWriter,
    best_checkpoint,
    latest_checkpoint,
    list_checkpoints,
    set_aside_damaged,
    steps_to_keep,
)

META = checkpoint.Meta(step=0, dataset_digest="d", versions={})


def writes(step, score=None):
    metrics = {} if score is None else {"val/miou": score}

    def write(folder):
        (folder / checkpoint.WEIGHTS).write_bytes(b"w" * 100)
        (folder / checkpoint.META).write_text(
            META.model_copy(update={"step": step, "metrics": metrics}).model_dump_json()
        )

    return write


def names(run):
    return sorted(path.name for path in run.iterdir())


def test_steps_to_keep_are_the_last_the_best_and_the_multiples():
    scores = {10: 0.5, 20: None, 30: 0.7, 40: 0.7, 50: 0.2, 60: None}
    found = [CheckpointInfo(step, score, Path()) for step, score in scores.items()]
    assert steps_to_keep(found, 1, None) == {30, 60}
    assert steps_to_keep(found, 2, None) == {30, 40, 60}
    assert steps_to_keep(found, 1, 20) == {20, 30, 40, 60}
    assert steps_to_keep([], 1, None) == {0}
    assert best_checkpoint(found).step == 30
    assert best_checkpoint(found[1:2]) is None


def test_written_checkpoints_are_complete_and_others_are_removed(tmp_path):
    writer = CheckpointWriter(tmp_path, num_best=1)
    for step, score in ((1, 0.9), (2, 0.1), (3, None)):
        writer.submit(step, writes(step, score))
    writer.wait()
    assert names(tmp_path) == ["step-000001", "step-000003"]
    assert [(one.step, one.score) for one in list_checkpoints(tmp_path)] == [(1, 0.9), (3, None)]


def test_an_incomplete_checkpoint_is_skipped_with_a_warning(tmp_path):
    writer = CheckpointWriter(tmp_path)
    writer.submit(1, writes(1))
    writer.wait()
    (tmp_path / "step-000002").mkdir()
    (tmp_path / "step-000002" / checkpoint.WEIGHTS).write_bytes(b"half")
    said = []
    assert [one.step for one in list_checkpoints(tmp_path, said.append)] == [1]
    assert "step-000002 contains no meta.json" in said[0]
    assert "is skipped" in said[0]


def test_temporary_folders_of_a_dead_writer_are_removed_and_never_listed(tmp_path):
    (tmp_path / f"step-000004{checkpoint_store.TEMP_SUFFIX}").mkdir()
    writes(4)(tmp_path / f"step-000004{checkpoint_store.TEMP_SUFFIX}")
    assert list_checkpoints(tmp_path) == []
    CheckpointWriter(tmp_path)
    assert names(tmp_path) == []


def test_training_waits_for_slow_storage_only_if_too_many_writes_are_pending(tmp_path):
    slow = threading.Event()

    def write(folder):
        slow.wait(10)
        writes(1)(folder)

    writer = CheckpointWriter(tmp_path)
    before = monotonic()
    for step in (1, 2):
        writer.submit(step, write)
    assert monotonic() - before < 1
    assert list_checkpoints(tmp_path) == []
    threading.Timer(0.5, slow.set).start()
    writer.submit(3, writes(3))
    assert monotonic() - before >= 0.5  # a third would have been held in memory
    writer.wait()
    assert list_checkpoints(tmp_path)[-1].step == 3


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("failed writing file")])
def test_a_full_disk_ends_the_run_and_keeps_the_latest_complete_checkpoint(tmp_path, error):
    def write(folder):
        (folder / checkpoint.WEIGHTS).write_bytes(b"half")
        raise error

    writer = CheckpointWriter(tmp_path)
    writer.submit(1, writes(1, 0.5))
    writer.submit(2, write)
    reason = rf"checkpoint of step 2 cannot be written .*{error.args[-1]}.* \d+ MiB are free there"
    said = rf"{reason}; the latest complete one is step-000001; .*--resume"
    with pytest.raises(TrainingError, match=said):
        writer.wait()
    assert names(tmp_path) == ["step-000001"]


def test_a_write_error_is_raised_by_the_next_submit(tmp_path):
    def write(_folder):
        raise OSError(5, "Input/output error")

    writer = CheckpointWriter(tmp_path)

    def submit_two_more():  # the first may have failed before the second is submitted, and has to before the third
        writer.submit(2, writes(2))
        writer.submit(3, writes(3))

    writer.submit(1, write)
    with pytest.raises(TrainingError, match="Input/output error.*no complete one exists"):
        submit_two_more()


def test_a_damaged_checkpoint_is_skipped_and_a_write_error_is_raised_without_waiting(tmp_path):
    writer = CheckpointWriter(tmp_path)
    for step in (1, 2):
        writer.submit(step, writes(step, score=step / 10))
    writer.wait()
    assert writer.latest_path == str(tmp_path / "step-000002")
    meta = checkpoint.load_meta(tmp_path / "step-000002")
    with_sizes = meta.model_copy(update={"files": {checkpoint.WEIGHTS: 101}})
    (tmp_path / "step-000002" / checkpoint.META).write_text(with_sizes.model_dump_json())
    said = []
    assert [one.step for one in list_checkpoints(tmp_path, said.append)] == []
    assert "has 100 bytes; expected 101" in said[0]
    with pytest.raises(CheckpointError, match="every checkpoint of .* is damaged"):
        latest_checkpoint(tmp_path)

    def fails(_folder):
        raise OSError(28, "No space left on device")

    writer.raise_if_failed()
    writer.submit(3, fails)
    until = monotonic() + 10
    while not writer._pending[0].done():
        assert monotonic() < until
    with pytest.raises(TrainingError, match="No space left"):
        writer.raise_if_failed()


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def with_checksums(step, score=None):
    """Writes a checkpoint as a run does, with checksums, of nothing but a file."""

    def write(folder):
        (folder / checkpoint.WEIGHTS).write_bytes(b"w" * 100)
        metrics = {} if score is None else {"val/miou": score}
        files = {"files": {checkpoint.WEIGHTS: 100}, "checksums": {checkpoint.WEIGHTS: sha256(b"w" * 100).hexdigest()}}
        meta = META.model_copy(update={"step": step, "metrics": metrics} | files)
        (folder / checkpoint.META).write_text(meta.model_dump_json())

    return write


def test_a_damaged_checkpoint_falls_back_to_the_previous_one_and_is_not_kept_for_it(tmp_path):
    writer = CheckpointWriter(tmp_path, num_best=1)
    for step in (1, 2, 3):
        writer.submit(step, with_checksums(step, score=step / 10))
    writer.wait()
    writer.submit(4, with_checksums(4))
    writer.wait()
    assert names(tmp_path) == ["step-000003", "step-000004"]
    flip_a_bit(tmp_path / "step-000004" / checkpoint.WEIGHTS)
    said = []
    latest = latest_checkpoint(tmp_path, said.append)
    assert latest.step == 3
    assert len(said) == 1
    assert "step-000004/model.safetensors has the SHA-256 checksum" in said[0]
    assert said[0].endswith("It is skipped.")
    set_aside_damaged(tmp_path, latest)
    assert names(tmp_path) == ["step-000003", "step-000004.damaged"]
    resumed = CheckpointWriter(tmp_path, num_best=1)
    resumed.submit(5, with_checksums(5))
    resumed.wait()
    assert [info.step for info in list_checkpoints(tmp_path)] == [3, 5]


def truncate(folder):
    os.truncate(folder / checkpoint.WEIGHTS, 50)


def remove_meta(folder):
    (folder / checkpoint.META).unlink()


def empty_meta(folder):
    (folder / checkpoint.META).write_bytes(b"")


def change_a_bit(folder):
    flip_a_bit(folder / checkpoint.WEIGHTS)


DAMAGES = pytest.mark.parametrize("damage", [truncate, remove_meta, empty_meta, change_a_bit])


@DAMAGES
def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_again_by_itself(tmp_path, damage):
    writer = CheckpointWriter(tmp_path, every=1)
    for step in (1, 2):
        writer.submit(step, with_checksums(step))
    writer.wait()
    for step in (1, 2):
        damage(tmp_path / f"step-{step:06d}")
    said = []
    with pytest.raises(CheckpointError, match=r"every checkpoint of .* is damaged; restore a checkpoint folder from"):
        latest_checkpoint(tmp_path, said.append)
    assert len(said) == 2
    assert latest_checkpoint(tmp_path / "new") is None


@DAMAGES
def test_every_damaged_checkpoint_after_the_latest_undamaged_one_is_renamed(tmp_path, damage):
    writer = CheckpointWriter(tmp_path, every=1)
    for step in (1, 2, 3):
        writer.submit(step, with_checksums(step))
    writer.wait()
    for step in (1, 3):
        damage(tmp_path / f"step-{step:06d}")
    latest = latest_checkpoint(tmp_path)
    assert latest.step == 2
    set_aside_damaged(tmp_path, latest)
    assert names(tmp_path) == ["step-000001", "step-000002", "step-000003.damaged"]


@pytest.mark.parametrize("step", [1, 2])  # 1: the only checkpoint is written again; 2: it is removed by retention
def test_a_removal_that_is_interrupted_leaves_no_damaged_checkpoint(tmp_path, monkeypatch, step):
    writer = CheckpointWriter(tmp_path)
    writer.submit(1, with_checksums(1))
    writer.wait()

    def remove_one_file(folder, **_options):  # the process dies within the removal
        (Path(folder) / checkpoint.WEIGHTS).unlink()
        raise SystemExit

    monkeypatch.setattr(checkpoint_store.shutil, "rmtree", remove_one_file)
    writer.submit(step, with_checksums(step))
    with pytest.raises(SystemExit):
        writer.wait()
    monkeypatch.undo()
    said = []
    assert latest_checkpoint(tmp_path, said.append).step == step
    assert said == []
    CheckpointWriter(tmp_path)
    assert names(tmp_path) == [f"step-{step:06d}"]


def test_the_new_name_is_on_disk_before_an_older_checkpoint_is_removed(tmp_path, monkeypatch):
    synced, fsync, rmtree = [], os.fsync, shutil.rmtree

    def record(handle):
        synced.append((str(Path(f"/proc/self/fd/{handle}").readlink()), names(tmp_path)))
        fsync(handle)

    monkeypatch.setattr(checkpoint_store.os, "fsync", record)
    removed = []
    monkeypatch.setattr(
        checkpoint_store.shutil,
        "rmtree",
        lambda path, **options: (removed.append((str(path), len(synced))), rmtree(path, **options)),
    )
    writer = CheckpointWriter(tmp_path)
    for step in (1, 2):
        writer.submit(step, writes(step))
    writer.wait()
    assert [found for path, found in synced if path == str(tmp_path)] == [
        ["step-000001"],
        ["step-000001", "step-000002"],
    ]
    assert removed == [(str(tmp_path / "step-000001.removed.partial"), len(synced))]
