"""HTML pages: a board to read in a browser, and a run to look into. One file each, nothing is fetched from anywhere."""
