"""Evidence in plain Python: content-addressed artifacts, step manifests, Merkle trees. No Prefect, MLflow or torch."""
