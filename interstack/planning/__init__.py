"""What a run will cost: sizes by its configuration, times measured on this machine."""
