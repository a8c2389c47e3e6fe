"""What every step of the pipeline has in common as a KFP component."""

from __future__ import annotations

import functools

from kfp import dsl

IMAGE = "triptych-python:0.1.0"
"""The image a step names until `pipelines.retraining` sets the one of the run."""

step = functools.partial(dsl.component, base_image=IMAGE, install_kfp_package=False)
"""Decorator of a lightweight Python component that runs inside an image where everything is installed."""
