"""Measure how fast, how large and how good candidates are, and choose the best one for a machine."""
