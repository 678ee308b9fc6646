"""SUPERB through s3prl: its downstream experts, trained and judged here."""
