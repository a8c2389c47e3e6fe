"""Evaluate: draw the evaluation set with candidate, incumbent and anchor, and score what they drew."""
