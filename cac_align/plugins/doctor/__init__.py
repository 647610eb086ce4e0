"""Checks that a host trainer, a server or this machine is set up right, with the line to add where it
is not.
"""
