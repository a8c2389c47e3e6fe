"""The built-in backend: pictures of different requests share forwards, and join and leave between steps."""
