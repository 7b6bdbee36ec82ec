"""The boundary: one thin Prefect task per step; everything that knows Prefect or MLflow lives here."""
