"""Road-anomaly detection for ROS 2: camera frames in, semantic labels and calibrated anomaly maps out."""

__version__ = "0.1.0"
