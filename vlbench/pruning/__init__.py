"""Gates, masks, calibration, allocation, cutting and saving: everything a pruner shares."""
