"""The page in the browser, on top of the pipeline."""
