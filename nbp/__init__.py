"""Next-Block Prediction for video (arXiv 2502.07737): tokenizer, generator, evaluation."""

__version__ = "0.1.0"
