"""Fine-tune: train a candidate, or fetch one that is known already."""
