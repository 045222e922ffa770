"""The worlds: each file writes one in the layout of the data set that it stands for."""
