"""Encode features: everything that training reads, computed once from the validated pictures."""
