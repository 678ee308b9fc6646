"""The operators' study: its files, and how long its runs take on a quiet machine."""
