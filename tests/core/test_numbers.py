"""Numbers in JSON."""

import json
from math import nan

from segray.core.errors import first_line
from segray.core.numbers import nan_to_none


def test_nan_becomes_null_at_every_depth():
    value = {"a": nan, 1: (0.5, {"b": [nan, "nan"]}), "c": None}
    assert json.dumps(nan_to_none(value)) == '{"a": null, "1": [0.5, {"b": [null, "nan"]}], "c": null}'


def test_the_first_line_of_an_error():
    assert first_line(ValueError("\n  first  \nsecond")) == "first"
    assert first_line(ValueError()) == "ValueError"
    assert first_line(ValueError("abc"), max_length=2) == "ab"
