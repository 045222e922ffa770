"""The common GPU evaluation loop."""
