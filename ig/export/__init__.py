"""Metrics of this host for what collects them: Prometheus."""
