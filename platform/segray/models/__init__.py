"""Networks: the contract of an architecture, SegFormer, plug-ins, checkpoints, and weight layouts of libraries."""
