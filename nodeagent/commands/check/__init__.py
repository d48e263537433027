"""`nodeagent check`: whether this node can do the job, told before anything goes wrong."""
