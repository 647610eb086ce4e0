"""The command `cac-align`: one module per verb, each with its options and the function that runs it."""
