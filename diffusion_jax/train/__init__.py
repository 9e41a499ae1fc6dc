"""The train step, its state, and what keeps it safe: sharding, checkpoints, logs."""
