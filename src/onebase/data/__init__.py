"""Data files: reading, formats, templates, preferences, checks and splits."""
