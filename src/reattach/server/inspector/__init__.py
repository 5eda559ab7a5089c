"""The page at ``/inspector``: what happened to a session, and what the nodes do."""
