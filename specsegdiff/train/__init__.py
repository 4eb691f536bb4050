"""Training on Lightning; nothing else in the library knows Lightning."""
