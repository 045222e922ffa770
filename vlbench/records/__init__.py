"""The record of a cell, statistics of its scores, convergence, flags. Nothing here imports torch."""
