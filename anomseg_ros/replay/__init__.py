"""Play recorded drives through the real node and record its outputs."""
