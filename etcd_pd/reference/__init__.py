"""For development and tests: a reference engine, its dispatch policies, and a whole stack on one machine."""
