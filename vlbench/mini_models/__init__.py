"""How the mini weights that ship with the package were trained."""
