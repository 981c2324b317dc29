"""Scores of sampled images against real ones."""
