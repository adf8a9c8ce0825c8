"""From a frozen encoder to a score that can be checked: features, probes, selection, metrics, intervals, baselines.

This room may import ``data``, ``model`` and the ground floor. It knows no algorithm, no run and no leaderboard.
"""
