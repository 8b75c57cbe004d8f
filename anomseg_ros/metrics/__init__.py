"""What the papers and benchmarks measure: mergeable accumulators (numpy + OpenCV only) and the protocols that use them.

Every accumulator reads a frame once, adds whole numbers only, and so gives the same result however the frames were
split over processes or machines.
"""
