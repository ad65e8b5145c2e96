"""Half precision and eight bits, each behind a verdict."""
