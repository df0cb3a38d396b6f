"""The sections of the report of a comparison, one a file, in the order in which they are shown."""
