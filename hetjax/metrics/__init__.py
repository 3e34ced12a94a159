"""Measure an answer against the ones that are expected. `registry` names the metrics; a program registers its own."""

from hetjax.metrics.registry import Measured, Metric, register_metric, registered_metrics

__all__ = ["Measured", "Metric", "register_metric", "registered_metrics"]
