"""Shows the cost of a model, training batches, or the curves of runs.

python pipelines/analyse.py batches --data data/demo --out batches.png
"""

from segray.cli.main import run

if __name__ == "__main__":
    run("analyse")
