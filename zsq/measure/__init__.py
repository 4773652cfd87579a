"""How good a network or a set of images is, and how sure a figure is."""
