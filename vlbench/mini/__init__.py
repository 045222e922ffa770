"""The mini world: procedural scenes written in the real on-disk formats."""
