"""How a model is judged: benchmarks, per-item scores, the gate. Knows neither Prefect nor MLflow nor training."""
