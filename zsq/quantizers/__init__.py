"""How a tensor becomes integers: grids, observers, ranges, learned rounding."""
