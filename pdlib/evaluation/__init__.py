"""Scores, agreement with raters, statistics over subjects, and the tables they are kept in."""
