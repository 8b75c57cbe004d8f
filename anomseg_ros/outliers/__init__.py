"""Objects that do not belong on a road, and pasting them into labelled frames."""
