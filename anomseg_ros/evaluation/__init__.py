"""Measuring detectors: datasets and bags in, tables, JSON and reports out."""
