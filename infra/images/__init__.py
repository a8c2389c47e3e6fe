"""The container images that the pipeline's steps run in: two Dockerfile targets, and the command that builds them."""
