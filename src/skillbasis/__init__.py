"""skillbasis."""
