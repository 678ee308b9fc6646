"""What several packages need: atomic files, locks, signals, random state, progress, console."""
