"""In what order: the DAG, the experiment file, the command line."""
