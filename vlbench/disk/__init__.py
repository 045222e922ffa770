"""Files that are whole or absent: storage, leases, checksums, digests, paths. Nothing here imports torch."""
