"""Where a compressed model is served: one file a runtime (vlbench/runtime.py has the contract)."""
