"""Models as files: native folders, official checkpoints, fetched weights."""
