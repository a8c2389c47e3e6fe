"""The embedded default: procedural portraits, a tiny but real text-to-image model, and its scorers."""
