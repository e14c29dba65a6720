"""Settings in, a running stack out: a whole serving stack on one machine, for development and for tests."""
