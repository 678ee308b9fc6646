"""What several packages need: whole files, locks, signals, random state, ranks, the terminal."""
