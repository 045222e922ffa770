"""From a finished run to a committed result, and from results to the committed tables and pages."""
