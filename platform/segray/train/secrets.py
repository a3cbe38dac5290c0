"""A driver's cloud keys: Ray Train hands them to its processes in a runtime environment, which Ray writes into logs."""

from ray.train.v2._internal import constants

PREFIX = "AWS_"


def keep() -> None:
    """Has this process hand on none of them: nodes have keys, or a role, of their own."""
    names = constants.ENV_VARS_TO_PROPAGATE
    names.difference_update({name for name in names if name.startswith(PREFIX)})
