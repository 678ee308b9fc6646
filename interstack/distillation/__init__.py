"""Distillation: pure objectives, and the LightningModule that trains a student by them."""
