"""Evaluation: probes of frozen upstreams, SUPERB, costs of models, and predictions."""
