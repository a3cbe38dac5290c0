"""Converts images and masks to a dataset of Parquet shards, or validates a dataset.

python pipelines/prepare.py --format demo --out data/demo
python pipelines/prepare.py --format folder --source DIR --out data/mine --classes classes.txt --ignore-id 11
"""

from segray.cli.main import run

if __name__ == "__main__":
    run("prepare")
