"""lcia.data.readers."""
