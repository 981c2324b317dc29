"""Training: its flags, its loop, what of a run lies on disk, and precision."""
