"""The open tables of models, tasks, methods and runtimes: the package, entry points and the user's workspace.

A table is read from source text: the decorator's literal arguments say name, title and capability, so that `list`
imports nothing. A file is imported when one of its names is used. A built-in enjoys nothing that a stranger's file
does not: all come through here.
"""
