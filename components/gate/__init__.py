"""Gate: a signed verdict on the scores: promote, hold, reject or invalid, with reasons."""
