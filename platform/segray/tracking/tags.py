"""Names of the tags that segray sets in MLflow, and of the aliases of the model registry.

This module imports nothing, so that a name does not load MLflow.
"""

CHAMPION, PREVIOUS, CHALLENGER = "champion", "previous", "challenger"
"""Aliases of the served version, of the version before it, and of the version that was registered last."""
SERVING_ALIASES = (PREVIOUS, CHAMPION)
"""Aliases in the order of their update. At every moment there is a champion and a known version to roll back to."""

LOCK_SUFFIX = ".promotion"
"""Suffix of the registered model that locks the aliases of a model. See segray.promotion.aliases."""
PLAN_TAG = "segray.plan"
"""Tag of the lock: the planned update of the aliases."""
UPDATE_TAG = "segray.aliases"
"""Tag of a registered model: champion and previous version after the last completed update, in JSON."""

KIND_TAG = "segray.kind"
"""Tag of a run: what it records. A training run has no such tag."""
EVALUATION, PROMOTION, SWEEP = "evaluation", "promotion", "sweep"
RUN_TAG = "segray.run"
"""Tag of a training run, and of the version that it registered: unique key of the run."""
TRIAL_TAG = "segray.trial"
"""Tag of the run of a trial: its number."""

DATASET_TAG, COMMIT_TAG, DIGEST_TAG = "segray.dataset", "segray.git", "segray.checkpoint"
"""Tags of a version: digest of the dataset, commit of the code, and digest of the files of the checkpoint."""
FILES_TAG = "segray.files"
"""Tag of a version and of its run: SHA-256 of every file of the version, by its path, in JSON."""
PROMOTION_TAG, ROLLBACK_TAG = "segray.promotion", "segray.rollback"
"""Tags of a version: its last decision, and its last rollback."""

MODEL_TAG, VERSION_TAG, DECISION_TAG = "segray.model", "segray.version", "segray.decision"
"""Tags of an audit run: name of the model, version, and outcome of the gates (or `rollback`)."""
MOVED_TAG = "segray.moved"
"""Tag of an audit run: `yes` if the aliases were moved, otherwise `no`."""
INTERRUPTED_TAG = "segray.interrupted"
"""Tag of an audit run: why it is incomplete."""
