"""The leaderboard: rows and the records behind them, submitting, standings, and the table and page that show them.

This room may import ``scoring``, `run` and the ground floor.
"""
