"""Everything between a camera frame and its outputs that needs neither torch nor ROS: numpy and OpenCV only."""
