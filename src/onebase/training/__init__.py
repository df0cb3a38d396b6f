"""Jobs, and the loop that trains them together."""
