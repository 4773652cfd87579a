"""Real images in: any source as uint8 pixels and labels."""
