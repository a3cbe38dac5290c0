"""The subcommands of `pipelines/benchmark.py`, one module each."""
