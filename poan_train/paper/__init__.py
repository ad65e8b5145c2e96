"""What the papers' tables need beside the networks."""
