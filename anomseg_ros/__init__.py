"""Road-anomaly detection for ROS 2: camera frames in, semantic labels and calibrated anomaly maps out."""

import os

__version__ = "0.1.0"

# No network use unless asked. From 1.29 on, ONNX Runtime's packages report to their makers: from a thread that starts
# with the import of onnxruntime, keeps a database in the user's home, and is known to crash the process. Ray reports
# its use likewise. Who wants that may set these variables; what is set stays.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
