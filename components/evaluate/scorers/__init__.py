"""Scorers for photographs, each on a checkpoint in a local folder; found by name in `triptych.scorers`."""
