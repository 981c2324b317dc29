"""A comparison of samplers: its settings, its plan, its rows on disk, its tables and pictures."""
