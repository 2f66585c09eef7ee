"""Who may run, and with which model in memory: admission, residency, supervision."""
