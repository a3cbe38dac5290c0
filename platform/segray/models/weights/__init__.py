"""Everybody's weights, read and written.

`load` takes a .pth of NVlabs, mmsegmentation or segmentation_models_pytorch, a folder, file or hub id of transformers
(4 and 5), and our own files; `save` writes each of them.
"""
