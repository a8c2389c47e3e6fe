"""Promote: move the champion, where the signed verdict says so about exactly these weights."""
