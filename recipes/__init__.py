"""Named runs: one TOML file each, for `zsq run NAME`."""
