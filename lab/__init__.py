"""Builds and boots real guests for tests and for trying things by hand."""
