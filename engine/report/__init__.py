"""TOLD: the record of a run as numbers, words and pictures."""
