"""The capabilities that ship: one file each, read through vlbench.plugins like a stranger's."""
