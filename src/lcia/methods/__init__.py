"""lcia.methods."""
