"""lcia.models."""
