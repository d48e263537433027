"""The comment on every table and chain that this agent makes.

The comment proves that a rule is ours, and its number tells whether the rules are of this
agent's version or of an older one.
"""

LAYOUT_VERSION = 1
"""Goes up with every change to the rules that a running ztunnel could notice."""

LAYOUT_MARK = "nodeagent layout "
"""How the comment begins, in every version."""

LAYOUT_COMMENT = f"{LAYOUT_MARK}{LAYOUT_VERSION}"
"""The comment that this version of the agent writes."""
