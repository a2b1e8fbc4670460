"""A run to look at: one self-contained HTML page, and a local server for images of one's own."""
