"""What source ids become: identities, lookups, and classes merged, dropped and renamed."""

import numpy as np
import pytest

from segray.core.classes import Classes
from segray.core.errors import DataError
from segray.data.convert.labels import apply_class_map, build_label_map, read_class_map

CLASSES = Classes.from_names(["sky", "car", "van", "tree"])


def class_lookup(labels):
    return {index: target for index, target in labels.lookup.items() if target is not None}


def test_without_a_lookup_ids_are_class_indices():
    labels = build_label_map(CLASSES, None, [7])
    assert class_lookup(labels) == {0: 0, 1: 1, 2: 2, 3: 3}
    assert {index for index, target in labels.lookup.items() if target is None} == {7, 255, 65535}
    assert (labels.num_classes, labels.ignore_id, labels.expected_ids) == (4, 255, "0..3 or 7 or 255")


def test_255_is_a_class_if_there_are_more_than_255_classes():
    labels = build_label_map(Classes.from_names([str(number) for number in range(300)]), None)
    assert labels.lookup[255] == 255
    assert (labels.ignore_id, labels.lookup[65535]) == (65535, None)


def test_an_ignored_id_must_not_be_a_class():
    with pytest.raises(DataError, match="--ignore-id 8 is also the id of a class: there are 4 classes, ids 5..8"):
        build_label_map(CLASSES, {5: 0, 6: 1, 7: 2, 8: 3}, [8])
    with pytest.raises(DataError, match="--ignore-id is -1"):
        build_label_map(CLASSES, None, [-1])


def test_classes_are_merged_dropped_and_renamed_in_order():
    labels = build_label_map(CLASSES, {10: 0, 11: 1, 12: 2, 13: 3, 0: None})
    classes, mapped = apply_class_map(CLASSES, labels, {"van": "vehicle", "car": "vehicle", "sky": None})
    assert classes.names == ("vehicle", "tree")
    assert classes.palette == (CLASSES.palette[1], CLASSES.palette[3])
    assert class_lookup(mapped) == {11: 0, 12: 0, 13: 1}
    assert {index for index, target in mapped.lookup.items() if target is None} == {0, 10, 255, 65535}


@pytest.mark.parametrize(("others", "names"), [(None, ("car", "tree")), ("rest", ("rest", "car", "tree"))])
def test_the_wildcard_matches_all_other_classes(others, names):
    labels = build_label_map(CLASSES, None)
    classes, mapped = apply_class_map(CLASSES, labels, {"car": "car", "tree": "tree", "*": others})
    assert classes.names == names
    assert mapped.lookup[0] == mapped.lookup[2] == (None if others is None else 0)


def test_mapping_300_classes_to_few_sets_the_ignore_id_to_255():
    many = Classes.from_names([f"c{number}" for number in range(300)])
    classes, mapped = apply_class_map(many, build_label_map(many, None), {"c0": "a", "c255": "b", "*": None})
    assert (classes.ignore_id, mapped.ignore_id) == (255, 255)
    assert class_lookup(mapped) == {0: 0, 255: 1}


def test_unknown_names_and_too_few_classes_are_errors():
    labels = build_label_map(CLASSES, None)
    with pytest.raises(DataError, match="--map contains vann, which is not a class of the source; did you mean 'van'"):
        apply_class_map(CLASSES, labels, {"vann": "car"})
    with pytest.raises(DataError, match="--map leaves 1 of 4 classes"):
        apply_class_map(CLASSES, labels, {"car": "car", "*": None})


def test_a_class_map_file_is_read(tmp_path):
    file = tmp_path / "map.yaml"
    file.write_text("van: car  # both are driven\nsky: null\n1: one\n")
    assert read_class_map(file) == {"van": "car", "sky": None, "1": "one"}


@pytest.mark.parametrize("text", ["- van", "van: [car]", "van: 3", "van: {", ""])
def test_an_invalid_class_map_file_is_an_error(tmp_path, text):
    (tmp_path / "map.yaml").write_text(text)
    with pytest.raises(DataError, match="map .*map.yaml"):
        read_class_map(tmp_path / "map.yaml")
    with pytest.raises(DataError, match="cannot be read"):
        read_class_map(tmp_path / "nowhere.yaml")


def test_expected_ids_are_formatted_as_ranges():
    labels = build_label_map(CLASSES, {0: 0, 1: 1, 2: 2, 9: 3, 34: None})
    assert labels.expected_ids == "0..2 or 9 or 34 or 255"
    assert np.array_equal(sorted(class_lookup(labels)), [0, 1, 2, 9])


@pytest.mark.parametrize("name", ["", "  ", "\ud800"])
def test_a_class_name_must_be_encodable(name):
    with pytest.raises(ValueError, match="a class name is .*; expected text"):
        Classes.from_names(["road", name])
