"""The recipe language: YAML text to frozen targets that know where they were written."""
