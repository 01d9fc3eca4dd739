"""What the scripts run: one module a command, for notebooks, sweeps and tests as well."""
