"""Hyperparameter sweeps: trials with settings from a search space, each a training run, with early stopping."""
