"""The built-in backend: pictures of different requests share each forward of the MM-DiT, and join and leave between steps."""
