"""Resolving the gaps of a Citation file, together, over dropped connections and dead servers."""
