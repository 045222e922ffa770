"""Ours, and not the package `tests` that mmsegmentation's wheel brings: a new process finds this one first."""
