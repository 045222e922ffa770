"""Compressed models where they are served: export with its proof, and measurement there. Names no runtime."""
