"""Published checkpoints: what the catalog knows of them, and how they come to this machine and stay the same."""
