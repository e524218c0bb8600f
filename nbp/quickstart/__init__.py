"""python -m nbp.quickstart: stages, baselines, scores."""
