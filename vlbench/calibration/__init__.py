"""What a method learns from a few forward passes: captured inputs, statistics, the walk over the blocks."""
