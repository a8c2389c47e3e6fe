"""The steps of the pipeline, one folder each: its settings, its work, and the KFP component that calls it."""

import atexit
import gc

# A step's process ends at once: Python else looks through all that its libraries made for a second.
atexit.register(gc.freeze)
