"""The planner's side with I/O: the catalogue of devices, and files that say which nodes there are."""
