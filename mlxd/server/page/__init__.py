"""The page at /ui: what a browser is served, what it is told, and what it may do."""
