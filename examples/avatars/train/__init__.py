"""Makes the tiny models: `python -m examples.avatars.train [vae | text | clean | transformer | teacher | scorers]`."""
