"""STATISTICS: the only room that imports numpy and scipy."""
