"""What students share: calibration, training, reconstruction, losses."""
