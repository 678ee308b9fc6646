"""SUPERB: s3prl's downstream experts, trained and evaluated here."""
