"""Block-causal video transformer: token ids in, token ids out."""
