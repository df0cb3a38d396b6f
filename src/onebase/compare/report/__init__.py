"""The report of a comparison: Markdown, one HTML page, CSV and JSON."""
