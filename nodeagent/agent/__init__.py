"""The running agent: makes the parts from the settings, connects them, starts and stops them."""
