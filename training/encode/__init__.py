"""Features: what is computed once from pictures and captions, kept, and read in every training step."""
