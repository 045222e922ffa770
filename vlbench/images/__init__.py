"""Files -> pixels: decoding, preprocessing, label maps."""
