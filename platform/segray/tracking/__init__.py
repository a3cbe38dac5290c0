"""What a run leaves in MLflow, by way of a journal of its own.

Nothing is imported here: whoever writes the journal does without MLflow.
"""
