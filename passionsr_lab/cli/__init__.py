"""The command line: `passionsr-lab COMMAND`, one file per command."""
