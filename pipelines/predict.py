"""Segments images.

python pipelines/predict.py --model models:/segray@challenger --source street.jpg --out masks
"""

from segray.cli.predict import main

if __name__ == "__main__":
    main()
