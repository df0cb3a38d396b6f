"""Races: many configurations of one task, successive halving, the leaderboard."""
