"""What is done to a model: gates, masks, cuts, their state, saving and reopening."""
