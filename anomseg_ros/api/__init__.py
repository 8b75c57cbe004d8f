"""The package from Python. `anomseg_ros.__init__` has the table of its public names; nothing else makes a promise."""
