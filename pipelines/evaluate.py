"""Evaluates a model on a split.

python pipelines/evaluate.py --model models:/segray@challenger --data data/demo --split test
"""

from segray.cli.evaluate import main

if __name__ == "__main__":
    main()
