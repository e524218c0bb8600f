"""Memory, operations and hours of a run on paper."""
