"""Applications that use Reattach; each runs in CI."""
