"""Shows what a model costs, what it is fed and how runs went.

python pipelines/analyse.py batches --data data/demo --out batches.png
"""

from segray.cli.main import run

if __name__ == "__main__":
    run("analyse")
