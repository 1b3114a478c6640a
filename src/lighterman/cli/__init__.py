"""The command line: words to calls and back, docker's flag names and exit codes. It decides nothing."""
