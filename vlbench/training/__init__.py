"""The common training loop: search, finetuning, adapters."""
