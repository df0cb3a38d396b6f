"""What a training will take in memory, time and disk, from a dry run of a few steps."""
