"""Road-anomaly detection for ROS 2: camera frames in, semantic labels and calibrated anomaly maps out."""

import os

__version__ = "0.1.0"

# The package uses no network unless asked. From version 1.29, importing onnxruntime starts a telemetry thread, which
# writes a database in the user's home and can crash the process. Ray also reports its use. Users can enable both by
# setting these variables.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# OpenCV allocates the size in an image header before it reads the data, by default up to 2^30 pixels. It reads this
# variable on import.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(2**26))
