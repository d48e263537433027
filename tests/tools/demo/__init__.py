"""`make demo`: the main job on this machine, told to a person, each line observed first."""
