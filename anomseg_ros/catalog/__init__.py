"""Published checkpoints: the catalog, downloads and digests."""
