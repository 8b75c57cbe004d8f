"""Measuring and making of bundles: against their checkpoints, at other sizes, and the choice among candidates."""
