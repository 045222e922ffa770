"""Methods, one file each. `vlbench list methods` shows them; `vlbench new method NAME` starts one."""
