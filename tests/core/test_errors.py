"""Messages of errors: control characters are escaped, and a line of any length is shortened."""

import pickle

from segray.core.errors import MAX_MESSAGE_LINE, DataError


def test_a_long_name_is_shortened_and_both_ends_are_kept():
    message = str(DataError(f"file a.csv repeats {'x' * 100_000}; rename one.\n  other line"))
    first, second = message.split("\n")
    assert first.startswith("file a.csv repeats xxx")
    assert first.endswith("xxx; rename one.")
    assert "[... 98032 characters ...]" in first
    assert len(first) < MAX_MESSAGE_LINE + 100
    assert second == "  other line"


def test_a_message_of_usual_lines_is_unchanged():
    lines = "\n".join(["  " + "x" * (MAX_MESSAGE_LINE - 2)] * 3)
    assert str(DataError(lines)) == lines
    assert str(pickle.loads(pickle.dumps(DataError(lines)))) == lines


def test_a_tab_of_a_name_is_escaped():
    assert str(DataError("a\tb\nc")) == "a\\tb\nc"
