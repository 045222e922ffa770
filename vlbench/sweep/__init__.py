"""Many cells: sweep files, plans, and the executors that run them."""
