"""What Triptych runs on: container images, the governed MLflow server, the manifests of a cluster."""
