"""The vocabulary of evidence: digests and records. Imports nothing of ours, no torch and no kfp."""
