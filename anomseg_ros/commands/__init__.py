"""The `anomseg` subcommands: each module parses its arguments, calls the library and prints."""
