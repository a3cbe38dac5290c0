"""Facts beside the pixels: from a CSV, from sources that know them, to slices of an evaluation."""

from dataclasses import replace

import numpy as np
import pytest

from segray.core.errors import DataError
from segray.data.convert.metadata import add_columns, column_names
from segray.data.manifest import read_manifest
from segray.data.reader import SplitReader
from segray.data.sources.sample import SourceSample

SAMPLES = tuple(SourceSample("val", f"val/cam0/{name}", "", "", 1, bytes, bytes) for name in ("a", "b", "c"))


def test_columns_are_matched_by_id_with_and_without_the_split(tmp_path):
    (tmp_path / "facts.csv").write_text('id,city,lens\nval/cam0/a,Ulm,wide\ncam0/b,"Aachen, West",\n', "utf-8-sig")
    result = add_columns(SAMPLES, tmp_path / "facts.csv")
    assert [dict(one.columns) for one in result] == [{"city": "Ulm", "lens": "wide"}, {"city": "Aachen, West"}, {}]
    assert column_names(result) == ("city", "lens")
    assert column_names(SAMPLES) == ()
    samples = (replace(SAMPLES[0], columns={"city": "Bonn", "day": "1"}), *SAMPLES[1:])
    assert add_columns(samples, tmp_path / "facts.csv")[0].columns == {"city": "Ulm", "lens": "wide", "day": "1"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no rows, no column id or no other column"),
        ("name,city\na,Ulm\n", "has no rows, no column id"),
        ("id\nval/cam0/a\n", "has no rows, no column id or no other column"),
        ("id,mask\nval/cam0/a,x\n", "has the column 'mask'; expected an identifier other than"),
        ("id,my city\nval/cam0/a,x\n", "has the column 'my city'"),
        ("id,city\nval/cam0/a,x\nval/cam0/a,y\n", "has 1 duplicate ids:\n  val/cam0/a"),
        ("id,city\nval/cam0/z,x\n", "has 1 unknown ids:\n  val/cam0/z"),
        ("id,city\nval/cam0/a,x,y\n", "has a row with more cells than columns"),
        ('id,city\nval/cam0/a,"x\n', "cannot be read"),
    ],
)
def test_an_invalid_table_is_an_error(tmp_path, text, message):
    (tmp_path / "facts.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        add_columns(SAMPLES, tmp_path / "facts.csv")


def test_a_missing_table_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"nowhere.csv cannot be read \(.*No such file"):
        add_columns(SAMPLES, tmp_path / "nowhere.csv")


def test_a_missing_column_is_an_error_that_lists_the_columns(streets):
    source = SplitReader(str(streets), read_manifest(str(streets)).split("val"))
    with pytest.raises(DataError, match="has no column city; it has id, image, mask, height, .*prepare --columns FILE"):
        source.read_columns(["city"])
    assert np.array_equal(source.read_columns(["height"])["height"].to_pylist(), [source.split.mean_height] * 7)
