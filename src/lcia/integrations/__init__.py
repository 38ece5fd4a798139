"""lcia.integrations."""
