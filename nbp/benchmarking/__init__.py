"""What `nbp.benchmark` measures."""
