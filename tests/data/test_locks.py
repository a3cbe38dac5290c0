"""A writer that has lost its lease on a bucket writes nothing more."""

import time

import pytest
from pyarrow.fs import FileSelector, LocalFileSystem

from segray.core.errors import DataError
from segray.data import locks
from segray.data.storage import UNFINISHED, require_writable, write_atomic

FS = LocalFileSystem()  # the lease needs only what all filesystems have


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "LEASE_REFRESH_S", 0.02)
    (tmp_path / UNFINISHED).mkdir()
    return str(tmp_path)


def wait_until_refused(path):
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            write_atomic(FS, path, b"x")
        except DataError as error:
            return str(error)
        time.sleep(0.02)
    raise AssertionError("every write was accepted")


def leases(root):
    return [info.path for info in FS.get_file_info(FileSelector(f"{root}/{UNFINISHED}"))]


def test_a_writer_that_is_cut_off_stops_before_others_may_take_over(root, tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "LEASE_VALID_S", 0.3)
    assert locks.LEASE_VALID_S < locks.LEASE_TIMEOUT_S
    with locks._lease(FS, root, "s3://bucket/out"):
        write_atomic(FS, f"{root}/part", b"x")
        time.sleep(0.5)
        write_atomic(FS, f"{root}/part", b"y")  # renewed meanwhile
        (tmp_path / UNFINISHED).rename(tmp_path / "away")  # each renewal fails from now on
        said = wait_until_refused(f"{root}/part")
        assert "the lease on s3://bucket/out is lost" in said
        assert "Run the same command again" in said
        with pytest.raises(DataError, match="is lost"):
            require_writable(root)
        write_atomic(FS, f"{root}-other", b"x")  # another folder is none of its business
    write_atomic(FS, f"{root}/part", b"z")  # the lease was given back


def test_a_writer_that_stood_still_notices_that_another_has_taken_over(root, monkeypatch):
    with locks._lease(FS, root, "s3://bucket/out"):
        monkeypatch.setattr(locks.os, "getpid", lambda: 1)
        with pytest.raises(DataError, match="wait until it ends"), locks._lease(FS, root, "s3://bucket/out"):
            pass
        assert len(leases(root)) == 1
        monkeypatch.setattr(locks, "LEASE_TIMEOUT_S", 0.0)
        (held,) = leases(root)
        other = locks.Lease(FS, f"{root}/{UNFINISHED}/at-work-other-1", "s3://bucket/out")
        FS.delete_file(held)  # as the other one does with an expired lease
        assert "another process has taken it over" in wait_until_refused(f"{root}/part")
        other.check()


def test_an_expired_lease_is_removed_by_its_successor(root, monkeypatch):
    dead = locks.Lease(FS, f"{root}/{UNFINISHED}/at-work-dead-1", "s3://bucket/out")
    monkeypatch.setattr(locks, "LEASE_TIMEOUT_S", 0.0)
    with locks._lease(FS, root, "s3://bucket/out"):
        assert not [path for path in leases(root) if "dead" in path]
        dead.refresh()
        with pytest.raises(DataError, match="another process has taken it over"):
            dead.check()
