"""Many cells: sweeps, and the executors that run them."""
