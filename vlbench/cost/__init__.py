"""What a model costs: parameters, MACs, latency, memory."""
