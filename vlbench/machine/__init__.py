"""The machine a cell runs on: workers, memory, stopping, the screen."""
