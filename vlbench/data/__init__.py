"""Image pipeline, data-set checks and the mini world."""
