"""Writes images and masks as a dataset of parquet shards.

python pipelines/prepare.py --format demo --out data/demo
python pipelines/prepare.py --format folder --source DIR --out data/mine --classes classes.txt --ignore-id 11
"""

from segray.cli.main import run

if __name__ == "__main__":
    run("prepare")
