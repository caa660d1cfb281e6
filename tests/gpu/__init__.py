"""What only a GPU can show, as one command: `python -m tests.gpu`. See README.md beside this."""
