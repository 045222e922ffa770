"""Attention forwards that can be cut and share keys and values, one small file per library.

Each file subclasses the library's class, overrides its forward and keeps its parameters and keys, so that
checkpoints load before or after adoption. Widths are read from the weights, the softmax scale from a constant.
"""
