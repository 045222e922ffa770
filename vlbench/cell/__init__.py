"""Words -> spec -> cell and its identity."""
