"""Recipes compared: arms, seeds and values as runs of `fit`, their queue and their table."""
