"""What people said about answers, and how it is learned or forgotten."""
