"""The formats that a dataset can be converted from, one file each; a source lists samples and reads none.

A new format is a function of the folder that --source names, which returns what it found there, and a line in SOURCES.
"""

from collections.abc import Callable

from segray.data.sources import ade20k, camvid, cityscapes, coco, demo, folder, huggingface, labelme, palette, voc
from segray.data.sources.sample import Found, Sample

__all__ = ["SOURCES", "Found", "Sample"]

SOURCES: dict[str, Callable[[str | None], Found]] = {
    "demo": demo.find,
    "folder": folder.find,
    "palette": palette.find,
    "camvid": camvid.find,
    "cityscapes": cityscapes.find,
    "ade20k": ade20k.find,
    "voc": voc.find,
    "coco-panoptic": coco.find_panoptic,
    "coco-stuff": coco.find_stuff,
    "coco-instances": coco.find_instances,
    "labelme": labelme.find,
    "huggingface": huggingface.find,
}
