"""The daemon as a service of the system: what launchd, systemd and Homebrew are given to run."""
