"""What speed costs in quality."""
