"""The mini world of each task, in the task's own layout; `Task.mini_world` returns it."""
