"""Model families, one file each. `vlbench list models` shows them; vlbench.model says how to write one."""
