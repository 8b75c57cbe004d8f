"""Adapting a bundle to the road of an unlabelled drive; see docs/adapt.md."""
