"""The operators' study: which way of growing pays, and under which optimizer and schedule."""
