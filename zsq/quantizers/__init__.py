"""How a tensor becomes integers, and where in a network: grids, observers, tracing, folding, placement."""
