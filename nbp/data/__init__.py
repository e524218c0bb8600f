"""Video files, clips, data sets and token caches."""
