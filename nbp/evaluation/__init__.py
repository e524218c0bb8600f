"""Metrics for video models: features, Frechet distances, image quality, named protocols."""
