"""The half of the CNI plugin that puts it into the chain and keeps it there."""
