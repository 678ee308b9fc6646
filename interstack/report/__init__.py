"""Runs as one HTML file, from their own records: no network, no account."""
