"""Reading and writing of SegFormer weights in the formats of several libraries.

`load_pretrained` reads .pth files of NVlabs, mmsegmentation or segmentation_models_pytorch, folders, files and hub ids
of transformers (4 and 5), and segray's own files. `save_weights` writes each of these formats.
"""
