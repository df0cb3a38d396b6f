"""Jobs, and the loop in which they learn together."""
