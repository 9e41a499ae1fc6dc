"""Networks, one readable file each, and the conditioners that feed them."""
