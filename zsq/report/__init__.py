"""Rows and gaps -> report.json, report.md, report.html, and a table for the terminal."""
