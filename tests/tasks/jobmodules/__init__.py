"""What the children of test_jobs.py do: each module has ``run(job, log)``, as every job's module has."""
