"""Settings that a flag spells in YAML: lists of names, each perhaps with what belongs to it."""

import yaml

LOSSES = ("cross_entropy", "ohem", "focal", "dice", "tversky", "lovasz", "boundary")
COUNTED = ("balanced", "median")


def _is_named(found: object, kinds: tuple[type, ...]) -> bool:
    """Returns whether something is NAME, or {NAME: value} with a value of one of these kinds."""
    if isinstance(found, dict):
        return len(found) == 1 and all(isinstance(name, str) and isinstance(of, kinds) for name, of in found.items())
    return isinstance(found, str)


def from_yaml(key: str, value: object, expected: str) -> object:
    """Returns what a file holds, or what a flag spells as YAML."""
    try:
        return yaml.safe_load(value) if isinstance(value, str) else value
    except yaml.YAMLError as error:
        raise impossible(key, value, expected) from error


def transforms(value: object) -> object:
    """Returns the transforms of a file, or of a flag."""
    expected = "a list of NAME or NAME: {argument: value}, e.g. '[ScaledCrop, {GaussNoise: {p: 0.2}}]'"
    found = from_yaml("data.augment", value, expected)
    if found is None:
        return None
    if not isinstance(found, list | tuple) or not all(_is_named(one, (dict, type(None))) for one in found):
        raise impossible("data.augment", value, expected)
    return found


def terms(value: object) -> object:
    """Returns the losses of a file, or of a flag; one may stand without a list."""
    expected = (
        f"a list of NAME or NAME: weight of {', '.join(LOSSES)} or module:attribute, e.g. '[ohem, {{dice: 0.5}}]'"
    )
    found = from_yaml("loss.terms", value, expected)
    found = [found] if isinstance(found, str) else found
    if not isinstance(found, list | tuple) or not found or not all(_is_named(one, (int, float)) for one in found):
        raise impossible("loss.terms", value, expected)
    return found


def class_weights(value: object) -> object:
    """Returns the class weights of a file, or of a flag."""
    expected = f"{', '.join(COUNTED)}, or a list of numbers, one for each class, none below 0"
    found = from_yaml("loss.class_weights", value, expected)
    if found is None or found in COUNTED:
        return found
    numbers = isinstance(found, list | tuple) and all(isinstance(one, int | float) and one >= 0 for one in found)
    if not numbers:
        raise impossible("loss.class_weights", value, expected)
    return found


def impossible(key: str, value: object, expected: str, advice: str = "") -> ValueError:
    """Returns the error of a setting that cannot be what it is."""
    return ValueError(f"{key} is {value}; expected {expected}{'; ' + advice if advice else ''}.")


def numbers(value: object) -> object:
    """Returns the numbers of a file, or of a flag, where commas set them apart: `3,5`."""
    if not isinstance(value, str):
        return value
    return [part.strip() for part in value.strip("[] ").split(",") if part.strip()]


def objectives(value: object) -> object:
    """Returns the metrics of a file, or of a flag; one may stand without a list."""
    found = from_yaml("tune.metric", value, "a metric, or a list of them")
    return [found] if isinstance(found, str) else found


def floors(value: object) -> object:
    """Returns the least IoU of every class, or of those named, of a file or of a flag."""
    expected = "a number from 0 to 1 for every class, or one for each that is named, e.g. '{road: 0.9, person: 0.4}'"
    found = from_yaml("promote.class_floor", value, expected)
    given = found if isinstance(found, dict) else {"": found}
    if not all(isinstance(name, str) and _is_share(floor) for name, floor in given.items()):
        raise impossible("promote.class_floor", value, expected)
    return found


def _is_share(found: object) -> bool:
    return isinstance(found, int | float) and not isinstance(found, bool) and 0 <= found <= 1


def names(value: object) -> object:
    """Returns the classes of a file, or of a flag; one may stand without a list."""
    expected = "names of classes, e.g. '[road, person]'"
    found = from_yaml("promote.changed_classes", value, expected)
    found = [found] if isinstance(found, str) else found
    if not isinstance(found, list | tuple) or not all(isinstance(name, str) for name in found):
        raise impossible("promote.changed_classes", value, expected)
    return found
