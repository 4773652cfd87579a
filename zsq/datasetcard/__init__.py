"""The dataset card: a page that says of a set of images how it was made, and what it is for."""
