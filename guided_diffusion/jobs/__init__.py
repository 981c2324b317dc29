"""Jobs: how a run starts, goes on, says how far it is, and ends."""
