"""Learning while serving: files, jobs and their worker, receipts, and the inbox of corrections."""
