"""The cluster, or a folder in its place: pods come from here, and what is reported goes here."""
