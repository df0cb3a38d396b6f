"""Runs on disk: their folders, checkpoints, interruption, and the session that every trainer uses."""
