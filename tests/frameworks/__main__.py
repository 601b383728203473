"""Prints how many lines of user code every column of the table takes in every framework."""

from tests.frameworks.lines import table

print(table())
