"""A whole serving stack on one machine, for development and for tests."""
