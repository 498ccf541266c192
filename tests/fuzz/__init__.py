"""Hostile bytes and arguments: nothing ends in a traceback, hangs, or takes memory without bounds."""
