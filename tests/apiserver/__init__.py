"""Tests against a real Kubernetes API server, where the programs are at hand."""
