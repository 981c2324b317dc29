"""Several processes as one job: who started them, and whether all are alive."""
