"""Results folders: a record in SQLite, the work that fills it, and what is derived from it."""
