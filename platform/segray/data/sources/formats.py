"""Registry of the source formats. A source lists samples and does not read them.

A new format is a module with a function that takes the folder given by --source and returns a `SourceListing`, plus an
entry in SOURCES.
"""

from collections.abc import Callable

from segray.data.sources import ade20k, camvid, cityscapes, coco, demo, folder, huggingface, labelme, palette, voc
from segray.data.sources.sample import SourceListing

SOURCES: dict[str, Callable[[str | None], SourceListing]] = {
    "demo": demo.list_samples,
    "folder": folder.list_samples,
    "palette": palette.list_samples,
    "camvid": camvid.list_samples,
    "cityscapes": cityscapes.list_samples,
    "ade20k": ade20k.list_samples,
    "voc": voc.list_samples,
    "coco-panoptic": coco.list_panoptic,
    "coco-stuff": coco.list_stuff,
    "coco-instances": coco.list_instances,
    "labelme": labelme.list_samples,
    "huggingface": huggingface.list_samples,
}
