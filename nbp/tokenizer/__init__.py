"""Video tokenizer: causal 3D-conv autoencoder with finite scalar quantization."""
