"""What a run will cost, before it is begun: sizes from formulas, times measured on this machine."""
