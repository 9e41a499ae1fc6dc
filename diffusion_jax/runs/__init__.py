"""What a run is on disk: its folder, its page, its held-out data, its first stage."""
