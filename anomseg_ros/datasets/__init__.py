"""Sources of labelled frames."""
