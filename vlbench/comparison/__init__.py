"""Two or more rows compared by their per-sample scores."""
