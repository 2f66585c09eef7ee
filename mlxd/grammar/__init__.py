"""What an answer may be: from a request's own words to a grammar that llguidance compiles.

The daemon has a process of its own judge grammars before it admits their requests; a worker
compiles them for its model. Both read them here, so that neither takes what the other refuses.
"""
