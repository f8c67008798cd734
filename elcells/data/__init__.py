"""Image files, tables and splits."""
