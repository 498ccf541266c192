"""Make for model artifacts: one YAML recipe per model, only stale stages rebuild."""

__version__ = "0.1.0"
