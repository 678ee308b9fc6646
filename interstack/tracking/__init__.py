"""Records and logs of a run: stages, events, metrics, loggers and the progress bar."""
