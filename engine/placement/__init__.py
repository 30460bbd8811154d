"""WHEN: which evaluations of a run are dense."""
