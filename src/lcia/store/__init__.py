"""The directory an assistant is: immutable versions, transactions that make them, checks."""
