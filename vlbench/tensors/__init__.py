"""Tensors on disk, never trusted: locating, reading, limits, checkpoints."""
