"""The gate: whether a candidate may replace the current version, tested sample by sample."""
