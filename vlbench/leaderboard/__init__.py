"""Results -> statistics -> rows -> tables. No model runs here, and nothing here imports torch."""
