"""Files, progress and processes: what everything else stands on."""
