"""A request: a teacher and bits, and what it leaves open. Chosen, forecast, then images and student made."""
