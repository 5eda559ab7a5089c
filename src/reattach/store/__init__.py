"""Where sessions are kept: the interface and its law, and the stores that keep them."""
