"""One file a task: the mini world in that task's own layout."""
