"""The CNI chain: the binary, the plugin server behind it, and the installer."""
