"""Evaluates a model on a split of a dataset, or compares two models.

python pipelines/evaluate.py --model models:/segray@challenger --data data/demo --split test
"""

from segray.cli.main import run

if __name__ == "__main__":
    run("evaluate")
