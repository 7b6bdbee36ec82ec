"""How a policy is trained: data, losses, the optimiser loop. Knows neither Prefect nor MLflow."""
