"""The list of skipped images is read only if it is a regular file."""

import os

from segray.data.validate.dataset import _list_errors


class EmptyManifest:
    """A manifest without skipped and re-encoded images."""

    left_out = 0
    normalised = ()


def test_a_list_that_is_a_pipe_is_an_error(tmp_path):
    os.mkfifo(tmp_path / "left_out.txt")
    (error,) = _list_errors(str(tmp_path), EmptyManifest(), set())
    assert error.endswith("left_out.txt: not a regular file")
    (tmp_path / "left_out.txt").unlink()
    assert not list(_list_errors(str(tmp_path), EmptyManifest(), set()))
    (tmp_path / "left_out.txt").write_text("a\n")
    (error,) = _list_errors(str(tmp_path), EmptyManifest(), set())
    assert error.endswith("left_out.txt: 1 lines; expected 0, as in the manifest")
