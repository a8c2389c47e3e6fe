"""Snapshot data: name every image and caption by content, so that later steps see any change."""
