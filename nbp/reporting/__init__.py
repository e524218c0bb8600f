"""Parts of the quickstart report: its inputs, checks, figures, clips and page."""
