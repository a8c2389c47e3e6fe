"""Register: store the candidate with all its evidence as a version in MLflow's model registry."""
