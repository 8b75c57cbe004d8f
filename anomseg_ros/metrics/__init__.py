"""Mergeable accumulators (numpy and OpenCV only) for what papers and benchmarks measure, and the protocols to use them.

Every accumulator reads a frame once and adds whole numbers only. So the result does not depend on how the frames were
split over processes or machines.
"""
