"""The one forward pass, and what answers with it."""
