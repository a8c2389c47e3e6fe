"""The container image that every step of the pipeline runs in, and how it is built."""
