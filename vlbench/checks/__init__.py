"""Checks that a user asks for: of a method, of a model's published numbers, of a data folder."""
