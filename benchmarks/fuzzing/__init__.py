"""Hostile inputs for everything that comes from outside: `benchmarks/fuzz.py` runs them, a test runs some of them."""
