"""Validate data: measure every image once, hold the facts against an expectation suite, keep what is good."""
