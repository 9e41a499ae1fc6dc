"""From the parts of a checkpoint to images."""
