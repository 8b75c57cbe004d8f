"""The ROS 2 half: the only place where rclpy is imported."""
