"""lcia.data.builtin."""
