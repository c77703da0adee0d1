"""Judging what comes out. Sees frames only."""
