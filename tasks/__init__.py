"""Tasks, one file each. `vlbench list tasks` shows them; vlbench.task says how to write one."""
