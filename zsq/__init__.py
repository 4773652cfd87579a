"""zsq: a trained network goes in, the calibration images that its quantizer needs come out."""
