"""Smaller and faster bundles, and what each costs: quantization, pruning, and the drift guard they share."""
