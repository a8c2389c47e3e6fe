"""The steps of the pipeline, one folder each: its settings, its work, and the KFP component that calls it."""
