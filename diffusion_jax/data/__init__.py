"""Sources of examples: deterministic, random access; and how they become batches."""
