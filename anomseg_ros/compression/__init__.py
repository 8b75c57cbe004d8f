"""Smaller and faster bundles: quantization, pruning, and the guard that measures what each one costs."""
