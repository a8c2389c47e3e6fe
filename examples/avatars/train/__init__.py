"""Makes the tiny models: `python -m examples.avatars.train [vae | text | transformer | teacher | scorers]`."""
