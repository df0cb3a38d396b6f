"""The metrics of a comparison: labels, answers, and the user's own."""
