"""What a person asks for on the command line, one module or folder for each command."""
