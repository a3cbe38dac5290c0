"""JSON and YAML of any origin fail with a ValueError of one line, in bounded time and memory."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from segray.core.classes import Classes, read_class_names
from segray.core.errors import DataError, format_list
from segray.core.parsing import parse_json, parse_yaml, summarize_error
from segray.data.convert.labels import read_class_map

DEEP = "[" * 100_000
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefg", "bcdefgh", strict=True)
)


@pytest.mark.parametrize("text", [DEEP, '{"a":' * 100_000, "{", b"\xff", b'"\xed\xa0"', "9" * 5000])
def test_invalid_json_is_a_value_error(text):
    with pytest.raises(ValueError, match=r"\S"):
        parse_json(text)


@given(st.recursive(st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(), st.lists))
def test_valid_json_is_unchanged(tree):
    assert parse_json(json.dumps(tree)) == tree


@pytest.mark.parametrize(
    "text", [DEEP, BOMB, "a: &a [*a]", "a: 2001-99-99", "a: !!python/name:os.system", "a: [", "9" * 5000, "<<: [1]"]
)
def test_invalid_yaml_is_a_value_error_of_one_line(text):
    with pytest.raises(ValueError, match=r"\A.+\Z") as caught:
        parse_yaml(text)
    assert "\n" not in str(caught.value)


def test_aliases_of_an_ordinary_size_are_expanded():
    assert parse_yaml("a: &a {x: 1}\nb: *a\nc: {<<: *a, y: 2}") == {"a": {"x": 1}, "b": {"x": 1}, "c": {"x": 1, "y": 2}}


class Pair(BaseModel):
    left: int
    right: int


def test_the_summary_of_an_error_is_one_short_line():
    with pytest.raises(ValidationError) as caught:
        Pair.model_validate({"left": "x" * 10_000})
    summary = summarize_error(caught.value)
    assert summary.startswith("left: ")
    assert summary.endswith(", and 1 more errors")
    assert summarize_error(ValueError("a\n\x1b[31m b\ud800.")) == "a [31m b"
    assert len(summarize_error(ValueError("x" * 10_000))) < 400
    assert summarize_error(KeyError()) == "KeyError"


def test_a_list_of_lines_has_one_line_per_entry():
    assert format_list(["a\n.png: missing", "b"]) == "\n  a .png: missing\n  b"


@pytest.mark.parametrize("text", [DEEP, '["a", " "]', '["a", "\\ud800"]'])
def test_a_classes_file_with_invalid_names_is_named(tmp_path, text):
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(DataError, match="classes.txt is"):
        read_class_names(tmp_path / "classes.txt")


def test_many_class_names_are_read_in_linear_time(tmp_path):
    (tmp_path / "classes.txt").write_text("\n".join(f"class {number}" for number in range(100_000)))
    assert len(Classes.from_names(read_class_names(tmp_path / "classes.txt")).names) == 100_000


@pytest.mark.parametrize("text", ["a: [\nb", DEEP, BOMB, "a: 2001-99-99"])
def test_an_invalid_class_map_is_named_on_one_line(tmp_path, text):
    (tmp_path / "map.yaml").write_text(text)
    with pytest.raises(DataError, match=r"\Amap .*map.yaml cannot be read .*\Z"):
        read_class_map(tmp_path / "map.yaml")


def test_control_characters_in_a_message_are_escaped():
    error = DataError("a\0b \x1b[2J \ud800 é\n  list")
    assert str(error) == "a\\x00b \\x1b[2J \\ud800 é\n  list"
