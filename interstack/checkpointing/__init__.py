"""What a run leaves on disk so that it can go on: when, how whole, and how exactly."""
