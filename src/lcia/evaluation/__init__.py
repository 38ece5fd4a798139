"""lcia.evaluation."""
