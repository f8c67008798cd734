"""HTML pages: the report, and the page on which people label cells."""
