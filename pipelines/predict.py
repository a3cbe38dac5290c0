"""Segments images and writes the masks.

python pipelines/predict.py --model models:/segray@challenger --source street.jpg --out masks
"""

from segray.cli.main import run

if __name__ == "__main__":
    run("predict")
