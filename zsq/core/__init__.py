"""What every room may use: errors, files, seeds, image spaces, options, progress, the machine."""
