"""Measurements beside others, and their results."""
