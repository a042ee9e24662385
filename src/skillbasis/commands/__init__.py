"""The commands, by what they do; each parses, calls and prints."""
