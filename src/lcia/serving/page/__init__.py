"""The chat page, and what it shows of an assistant."""
