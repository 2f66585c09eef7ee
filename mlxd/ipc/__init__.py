"""The boundary between the daemon and its workers: typed messages over a socket pair."""
