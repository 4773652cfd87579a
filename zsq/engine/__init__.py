"""images x view -> teacher with taps -> statistics -> objectives -> step."""
