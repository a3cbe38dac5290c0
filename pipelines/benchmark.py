"""Measures ours beside a peer's, in turns, in one run.

python pipelines/benchmark.py model --variant b0 --size 512 --batch 2
"""

from segray.cli.benchmark import main

if __name__ == "__main__":
    main()
