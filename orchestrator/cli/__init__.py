"""The command line: starts a cluster on this machine and looks at a running one."""
