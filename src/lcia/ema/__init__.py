"""lcia.ema."""
