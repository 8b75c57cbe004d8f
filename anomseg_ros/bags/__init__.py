"""Reading and writing of recorded drives (MCAP and sqlite3 bags) without a ROS installation, on the rosbags library."""
