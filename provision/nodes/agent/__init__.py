"""Runs on a node as root: looks, writes, installs, starts and answers. Standard library only; sent over SSH, never stored there.

It reads one JSON request per line, {"op": name, "args": {…}}, and answers each with lines of JSON: any number of
{"progress": text}, then {"value": …} or {"error": text, "hint": text}. What it is told may hold secrets; it never prints any.

session.py sends the parts as they are, in the order of AGENT_PARTS; each imports only earlier ones, by their whole names.
"""
