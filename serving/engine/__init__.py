"""The built-in backend: pictures of different requests share forwards of the MM-DiT, and join and leave between steps."""
