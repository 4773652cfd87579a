"""Where a network is quantized: its graph, sites, units and pairs of layers."""
