"""Finished runs -> pictures (PNG, SVG) and their numbers (CSV). matplotlib is imported only where one is drawn."""
