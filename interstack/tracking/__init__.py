"""Watching a run: the progress bar, the record of its stages and the closing table."""
